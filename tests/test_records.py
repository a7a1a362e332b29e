"""What the entries for the records need: packed weights, views in doubt, pruned epochs, a rate."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms import functional as TF

from experiments.evidence import runs_of
from experiments.nets import deslant
from experiments.records import DoubtingNet, Pruning, SmallNet, TurningNet, cubic, normal_spacing, packed
from experiments.variants import GROUPS
from model import STEPS, FinalNet, crop
from tinymnist import runs
from tinymnist.recipe import learning_rate
from utils import Recipe, count_parameters, fit, normalize


@pytest.fixture
def images(drawn):
    return normalize(drawn.test_images[:50])


def unpacked(data: bytes, channels, levels, kernels=False):
    """What computes the logits of cropped images, from nothing but what `packed` gives for weights of few levels."""
    last = channels[-1]
    shapes = [(o, i, 3, 3) for i, o in zip((1, *channels), channels, strict=False)]
    shapes += [(last, 1, 3, 3), (10, last)] if kernels else [(10, 9 * last)]
    halves = 2 * sum(channels) + (2 if kernels else 1) + 10
    codes, digits = int.from_bytes(data[: -2 * halves], "big"), []
    for _ in range(sum(map(math.prod, shapes))):
        codes, digit = divmod(codes, levels)
        digits.append(digit - levels // 2)
    assert codes == 0
    parts = torch.tensor(digits[::-1], dtype=torch.float32).split([math.prod(shape) for shape in shapes])
    weights = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
    numbers = torch.tensor(np.frombuffer(data[-2 * halves :], "<f2").astype(np.float32))
    *norms, factors, bias = numbers.split([size for c in channels for size in (c, c)] + [2 if kernels else 1, 10])

    def classify(x: torch.Tensor) -> torch.Tensor:
        for number, pooled in enumerate((True, False, True, True)):
            x = F.conv2d(x, weights[number], padding=1)
            x = F.max_pool2d(x, 2) if pooled else x
            scale, shift = (values.view(-1, 1, 1) for values in norms[2 * number : 2 * number + 2])
            x = F.relu(x * scale + shift)
        x = (x * (weights[4] * factors[0])[:, 0]).sum((2, 3)) if kernels else x.flatten(1)
        return x @ (weights[-1] * factors[-1]).T + bias

    return classify


@pytest.mark.parametrize("levels", [3, 15])
@pytest.mark.parametrize("kernels", [False, True])
def test_packed_bytes_are_all_that_evaluation_reads(drawn, images, levels, kernels):
    channels = (4, 6, 6, 5)
    torch.manual_seed(0)
    net = TurningNet(channels, kernels, levels)
    fit(net, Recipe(epochs=1, max_lr=0.05, average=0.9), drawn, progress=False)
    data = packed(net)
    with torch.no_grad():
        found = unpacked(data, channels, levels, kernels)(crop(images))
        assert torch.allclose(net.classify(crop(images)), found, atol=1e-4)
    weights = 9 * (4 + 24 + 36 + 30) + (45 + 50 if kernels else 450)
    assert len(data) == math.ceil(weights * math.log2(levels) / 8) + 2 * (2 * 21 + 11 + kernels)


def test_the_published_bytes_get_as_many_test_images_right_as_the_run(mnist):
    """The fewest bytes, read as above, with further views in doubt."""
    arguments = GROUPS["records"].variants()["levels-15"].net.args
    net = SmallNet(*arguments)
    net.load_state_dict(runs.read_weights(runs.RESULTS / "levels-15.pt")[0])
    classify, correct = unpacked(packed(net), *arguments), 0
    with torch.no_grad():
        for images, labels in zip(mnist.test_images.split(1000), mnist.test_labels.split(1000), strict=True):
            x = normalize(images)
            logits = classify(crop(x))
            doubt = logits.softmax(1).amax(1) < 0.99
            views = [classify(crop(x[doubt], dy, dx)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
            logits[doubt] = torch.stack(views).mean(0)
            correct += int((logits.argmax(1) == labels).sum())
    recorded = runs_of("records", "levels-15")[0]["history"]["test_correct"][-1]
    assert abs(correct - recorded) <= 1  # rounding


@pytest.mark.parametrize("net", [FinalNet(), SmallNet((7, 14, 14, 14))])
def test_without_few_levels_the_bytes_are_float32(net):
    expected = []
    for conv, norm in ((getattr(net, f"conv{k}"), getattr(net, f"norm{k}")) for k in range(1, 5)):
        norm.running_mean, norm.running_var = torch.randn(norm.num_features), torch.rand(norm.num_features)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        expected += [conv.weight, scale, norm.bias - norm.running_mean * scale]
    numbers = torch.cat([one.detach().flatten() for one in (*expected, net.head.weight, net.head.bias)])
    assert len(packed(net)) == 4 * count_parameters(net)
    torch.testing.assert_close(torch.tensor(np.frombuffer(packed(net), "<f4")), numbers)


def test_levels_fit_a_normal_distribution():
    """The spacings of Max, "Quantizing for minimum distortion" (1960), table II."""
    assert [normal_spacing(levels) for levels in (3, 5, 7, 15)] == pytest.approx([1.224, 0.843, 0.651, 0.353], abs=2e-3)


def test_further_views_are_looked_at_in_doubt_alone(images):
    torch.manual_seed(0)
    net = DoubtingNet(deslanted=True).eval()
    with torch.no_grad():
        straight = deslant(images)
        plain, all_views = net.classify(crop(straight)), FinalNet.forward(net, straight)
        probability = plain.softmax(1).amax(1)
        net.sure = float(probability.median())
        doubt = probability < net.sure
        assert 0 < doubt.sum() < len(images)
        assert torch.allclose(net(images), torch.where(doubt[:, None], all_views, plain), atol=1e-5)
        assert torch.allclose(net(images[~doubt]), plain[~doubt], atol=1e-5)  # no doubt at all


def test_images_in_doubt_are_turned_too(images):
    torch.manual_seed(0)
    net = TurningNet((4, 6, 6, 5), kernels=True, turns=(-8.0, 4.0)).eval()
    net.sure = 1.1  # never
    turned = [TF.affine(images, turn, [0, 0], 1, [0], TF.InterpolationMode.BILINEAR) for turn in (-8.0, 4.0)]
    with torch.no_grad():
        expected = torch.stack([FinalNet.forward(net, deslant(image)) for image in turned]).mean(0)
        assert torch.allclose(net(images), expected, atol=1e-4)
        net.sure = 0.0  # always
        assert torch.allclose(net(images), net.classify(crop(deslant(images))))


@pytest.fixture
def pruned():
    """1,600 images whose first pixels spell their number, of which an eighth is hard, and how a pass sees them."""
    n = 1600
    images, labels = torch.zeros(n, 28, 28, dtype=torch.uint8), torch.arange(n) % 10
    images[:, 5, 5], images[:, 5, 6] = torch.arange(n) // 40, torch.arange(n) % 40
    pruning, recipe = Pruning(9 / 16), Recipe(batch_size=64)
    return pruning, pruning.batches(images, labels, recipe, torch.Generator().manual_seed(0))


def test_half_of_what_is_learnt_is_left_out_and_the_rest_counts_double(pruned):
    pruning, loader = pruned
    n = len(pruning.images)
    hard = torch.arange(n) % 8 == 0  # an eighth, as many as are not learnt
    pruning.losses = torch.where(hard, 5.0, torch.rand(n, generator=torch.Generator().manual_seed(1)))
    seen, weights = torch.zeros(n), torch.zeros(n)
    for _ in range(2):
        batches = 0
        for x, y in loader:
            numbers = (255 * 0.3081 * x[:, 0, 5, 5:7]).round().long() @ torch.tensor([40, 1])
            assert torch.equal(numbers, pruning.chosen)
            assert torch.equal(numbers % 10, y)
            seen[numbers] += 1
            weights[numbers] = pruning.weights
            before = pruning.losses.clone()
            logits = torch.randn(len(x), 10)
            each = F.cross_entropy(logits, y, reduction="none")
            loss = pruning.loss(logits, y)
            assert loss == pytest.approx(float((each * pruning.weights).sum() / pruning.weights.sum()))
            assert torch.equal(pruning.losses[numbers], each)
            pruning.losses = before  # so that the second epoch ranks alike
            batches += 1
        assert batches == len(loader) == (n - 700 + 63) // 64
    assert (seen[hard] == 2).all()
    assert (weights[hard] == 1).all()
    assert set(seen[~hard].tolist()) == {0, 1, 2}  # drawn anew
    assert seen[~hard].sum() == 2 * 700
    assert (weights[(seen > 0) & ~hard] == 2).all()


def test_what_was_not_seen_yet_ranks_last(pruned):
    pruning, loader = pruned
    passes = []
    for _ in range(2):
        passes.append(torch.cat([(pruning.chosen, pruning.loss(torch.zeros(len(y), 10), y))[0] for _, y in loader]))
    unseen = torch.ones(len(pruning.images), dtype=torch.bool)
    unseen[passes[0]] = False
    assert unseen.sum() == 700
    # The second pass ranks the 700 last: 200 are not learnt, and of the other 500 and the 900, half are left out.
    assert 200 + 250 - 60 < unseen[passes[1]].sum() < 200 + 250 + 60


def test_a_pruned_run_learns(drawn):
    pruning = Pruning(1.0)
    torch.manual_seed(0)
    recipe = Recipe(epochs=4, max_lr=0.1, batch_size=32)
    history = fit(STEPS[3].net(), recipe, drawn, progress=False, batches=pruning.batches, loss=pruning.loss)
    assert set(history["train_total"]) <= {*range(len(drawn.train_images) - 63, len(drawn.train_images) + 32)}
    assert history["test_correct"][-1] > 0.8 * history["test_total"][-1]
    assert torch.isfinite(pruning.losses).all()


def test_the_cubic_lies_below_the_straight_fall():
    recipe = Recipe(schedule="one_cycle", warmup=0.2)
    assert cubic(recipe, 0.1) == learning_rate(recipe, 0.1) == 0.5
    assert cubic(recipe, 0.6) == pytest.approx(0.125)
    assert (cubic(recipe, 0.2), cubic(recipe, 1.0)) == (1, 0)
