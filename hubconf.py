"""torch.hub: `torch.hub.load("tiny-mnist/tiny-mnist", "tiny_mnist")` gives the final net with its weights."""

from __future__ import annotations

import sys
from pathlib import Path as _Path  # torch.hub lists whatever can be called and has no underscore

dependencies = ["PIL", "filelock", "matplotlib", "numpy", "torch", "tqdm"]  # as they are imported

# torch.hub has this folder on the path only while it loads, so all is imported at once. A program may have modules of
# its own that are named as those here; they are put aside meanwhile.
_here = _Path(__file__).resolve().parent
_named = {k: m for k, m in sys.modules.items() if k.partition(".")[0] in ("model", "utils", "tinymnist")}
_others = {k: m for k, m in _named.items() if _here not in _Path(getattr(m, "__file__", "") or "").parents}
for _name in _others:
    del sys.modules[_name]
try:
    from model import FinalNet as _FinalNet
    from tinymnist.runs import RESULTS as _RESULTS
    from tinymnist.runs import load_weights as _load_weights
finally:
    sys.modules.update(_others)


def tiny_mnist(pretrained: bool = True, seed: int = 0) -> _FinalNet:
    """The net of Step 3: float32 images (N, 1, 28, 28), uint8 / 255 / 0.3081 with background 0, to logits (N, 10).

    Args:
        pretrained: with the published weights and in evaluation mode, or as it is before training.
        seed: the published run, by its random seed.

    Raises:
        ValueError: no weights are published for that random seed.
        OSError: the weights are missing, or their SHA-256 sum is not that of their record.
    """
    found, folder = _FinalNet(), _RESULTS / "step3"
    if not pretrained:
        return found
    seeds = sorted(int(path.stem.removeprefix("seed_")) for path in folder.glob("seed_*.json"))
    if seeds and seed not in seeds:
        raise ValueError(f"no published weights of random seed {seed!r}: use {seeds[0]} to {seeds[-1]}")
    _load_weights(found, folder / f"seed_{seed}.pt")
    return found.eval()
