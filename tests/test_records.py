"""What the entries for the records need: packed weights, views in doubt, pruned epochs, a rate."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from experiments.records import DoubtingNet, Pruning, SmallNet, cubic, normal_spacing, packed
from model import STEPS, FinalNet, crop
from tinymnist.recipe import learning_rate
from utils import Recipe, count_parameters, fit, normalize


@pytest.fixture
def images(drawn):
    return normalize(drawn.test_images[:50])


def unpacked_logits(data: bytes, channels, bits, images):
    """The logits of one view, from nothing but what `packed` gives for weights of few bits."""
    shapes = [(o, i, 3, 3) for i, o in zip((1, *channels), channels, strict=False)] + [(10, 9 * channels[-1])]
    at, weights = 0, []
    for shape, n in zip(shapes, bits, strict=True):
        count = int(np.prod(shape))
        size = -(-count * n // 8)
        stream = np.unpackbits(np.frombuffer(data[at : at + size], np.uint8))[: count * n].reshape(count, n)
        codes = (stream.astype(int) << np.arange(n)).sum(1) - (2 ** (n - 1) - 1)
        weights.append(torch.tensor(codes, dtype=torch.float32).view(shape))
        at += size
    halves = torch.tensor(np.frombuffer(data[at:], "<f2").astype(np.float32))
    *norms, factor, bias = halves.split([size for c in channels for size in (c, c)] + [1, 10])
    x = crop(images)
    for number, pooled in enumerate((True, False, True, True)):
        x = F.conv2d(x, weights[number], padding=1)
        x = F.max_pool2d(x, 2) if pooled else x
        scale, offset = (values.view(-1, 1, 1) for values in norms[2 * number : 2 * number + 2])
        x = F.relu(x * scale + offset)
    return x.flatten(1) @ (weights[-1] * factor).T + bias


def test_packed_bytes_are_all_that_evaluation_reads(drawn, images):
    channels, bits = (4, 6, 6, 5), (4, 3, 4, 2, 3)
    torch.manual_seed(0)
    net = SmallNet(channels, bits)
    fit(net, Recipe(epochs=1, max_lr=0.05, average=0.9), drawn, progress=False)
    data = packed(net)
    with torch.no_grad():
        assert torch.allclose(net.classify(crop(images)), unpacked_logits(data, channels, bits, images), atol=1e-4)
    numbers = [9 * 4, 9 * 24, 9 * 36, 9 * 30, 450]
    assert len(data) == sum(-(-n * b // 8) for n, b in zip(numbers, bits, strict=True)) + 2 * (2 * 21 + 11)


@pytest.mark.parametrize("net", [FinalNet(), SmallNet((7, 14, 14, 14))])
def test_without_few_bits_the_bytes_are_float32(net):
    assert len(packed(net)) == 4 * count_parameters(net)


@pytest.mark.parametrize("bits", SPACING)
def test_codes_fit_a_normal_distribution(bits):
    """Max, "Quantizing for minimum distortion" (1960): no other spacing is nearer to normal values."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    most = 2 ** (bits - 1) - 1

    def error(spacing: float) -> float:
        return float(((x / spacing).round().clamp(-most, most) * spacing - x).square().mean())

    assert error(SPACING[bits]) < min(error(0.95 * SPACING[bits]), error(1.05 * SPACING[bits]))


def test_further_views_are_looked_at_in_doubt_alone(images):
    torch.manual_seed(0)
    net = DoubtingNet(sure=0.5).eval()
    net.head.weight.data *= 20  # so that it is sure of some
    with torch.no_grad():
        plain, all_views, found = net.classify(crop(images)), FinalNet.forward(net, images), net(images)
    doubt = plain.softmax(1).amax(1) < 0.5
    assert 0 < doubt.sum() < len(images)
    assert torch.allclose(found, torch.where(doubt[:, None], all_views, plain), atol=1e-5)


def test_half_of_what_is_learnt_is_left_out_and_the_rest_counts_double():
    n = 1600
    images, labels = torch.zeros(n, 28, 28, dtype=torch.uint8), torch.zeros(n, dtype=torch.int64)
    pruning = Pruning()
    recipe = Recipe(batch_size=64)
    loader = pruning.batches(images, labels, recipe, torch.Generator().manual_seed(0))
    hard = torch.arange(n) % 8 == 0  # an eighth, as many as are not learnt
    pruning.losses = torch.where(hard, 5.0, torch.rand(n, generator=torch.Generator().manual_seed(1)))
    seen, weights = torch.zeros(n), torch.zeros(n)
    for _ in range(2):
        batches = 0
        for x, y in loader:
            seen[pruning.chosen] += 1
            weights[pruning.chosen] = pruning.weights
            before = pruning.losses.clone()
            logits = torch.randn(len(x), 10)
            each = F.cross_entropy(logits, y, reduction="none")
            loss = pruning.loss(logits, y)
            assert loss == pytest.approx(float((each * pruning.weights).sum() / pruning.weights.sum()))
            assert torch.equal(pruning.losses[pruning.chosen], each)
            pruning.losses = before  # so that the second epoch ranks alike
            batches += 1
        assert batches == len(loader) == (n - 700 + 63) // 64
    assert (seen[hard] == 2).all()
    assert (weights[hard] == 1).all()
    assert set(seen[~hard].tolist()) == {0, 1, 2}  # drawn anew
    assert seen[~hard].sum() == 2 * 700
    assert (weights[(seen > 0) & ~hard] == 2).all()


def test_a_pruned_run_learns(drawn):
    pruning = Pruning()
    torch.manual_seed(0)
    recipe = Recipe(epochs=8, max_lr=0.1, batch_size=32)
    history = fit(STEPS[3].net(), recipe, drawn, progress=False, batches=pruning.batches, loss=pruning.loss)
    assert set(history["train_total"]) == {len(drawn.train_images) - round(0.875 * len(drawn.train_images)) // 2}
    assert history["test_correct"][-1] > 0.8 * history["test_total"][-1]
    assert torch.isfinite(pruning.losses).all()


def test_the_parabola_lies_below_the_straight_fall():
    recipe = Recipe(schedule="one_cycle", warmup=0.2)
    assert falling_faster(recipe, 0.1) == learning_rate(recipe, 0.1) == 0.5
    assert falling_faster(recipe, 0.6) == pytest.approx(0.25)
    assert (falling_faster(recipe, 0.2), falling_faster(recipe, 1.0)) == (1, 0)
