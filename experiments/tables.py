"""The tables of the study: one row per finished run, and each variant against its base, pair by pair."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from experiments.low_bits import LowBitNet
from experiments.variants import FASTEST, GROUPS, taught
from model import STEPS
from tinymnist import runs
from tinymnist.augmentation import STD
from tinymnist.runs import LAST, Run, accuracy, last_accuracies

TARGET = STEPS[3].target


def read_runs() -> pd.DataFrame:
    """One row per finished run, from the records: percent, seconds, and the loss as mean cross-entropy.

    `last`, `last5_mean`, `last5_min` and `test_loss` (mean of the last five epochs) are about the images of `split`.
    """
    labels = pd.read_csv(runs.RESULTS / "study" / "variants.csv", keep_default_na=False).set_index(["group", "variant"])
    rows = []
    for path in sorted(runs.RESULTS.glob("**/seed_*.json")):
        *_, group, variant, _ = ("steps", *path.relative_to(runs.RESULTS).parts)
        known = labels.loc[(group, variant)].to_dict() if (group, variant) in labels.index else {}
        row = runs.read_json(path, functools.partial(row_of, known=known))
        rows.append({"group": group, "variant": variant} | row)
    frame = pd.DataFrame(rows).sort_values(["group", "variant", "seed"], kind="stable", ignore_index=True)
    digits = {"last": 4, "last5_mean": 4, "last5_min": 4, "train_accuracy": 4, "test_loss": 8, "seconds": 1}
    return frame.round(digits)


def row_of(run: Run, known: dict[str, str]) -> dict[str, object]:
    """A run as a row; `known` has base and change where the record does not name them."""
    epochs, last = run["history"], last_accuracies(run)
    row = {"base": known.get("base", run.get("base", "")), "seed": run["seed"], "split": run["split"]}
    row |= {"parameters": run["params"], "epochs": len(epochs)}
    row |= {"last": accuracy(epochs[-1]), "last5_mean": np.mean(last), "last5_min": min(last)}
    row |= {"test_loss": np.mean([epoch["test_loss"] for epoch in epochs[-LAST:]])}
    row |= {"train_accuracy": run.get("train_accuracy"), "seconds": sum(epoch["seconds"] for epoch in epochs)}
    row |= {name: run[name] for name in ("threads", "device", "hardware")}
    row |= {"torch": run["torch_version"], "commit": run["commit"]}
    return row | {"change": known.get("change", run.get("change", ""))}


def paired(difference: pd.Series, split: pd.Series) -> dict[str, float]:
    """Mean of paired differences (""), its 95 % interval by Student's t (low, high), and the p-value that it is 0 (p).

    `bound` is what the mean exceeds with 95 % confidence: the bound of a one-sided interval.

    With at least two pairs on each of several splits, the splits are blocks: the spread counts within them only.
    """
    n, blocks = len(difference), split.nunique()
    if n < 2 or difference.nunique() == 1:  # no spread, so no interval
        return {"": difference.mean()} | dict.fromkeys(("low", "high", "p", "bound"), np.nan)
    blocked = blocks > 1 and split.value_counts().min() > 1
    center = difference.groupby(split.to_numpy()).transform("mean") if blocked else difference.mean()
    freedom = n - blocks if blocked else n - 1
    error = np.sqrt(((difference - center) ** 2).sum() / freedom / n)
    half, mean = stats.t.ppf(0.975, freedom) * error, difference.mean()
    found = {"": mean, "low": mean - half, "high": mean + half, "bound": mean - stats.t.ppf(0.95, freedom) * error}
    return found | {"p": 2 * stats.t.sf(abs(mean) / error, freedom)}


def holm(p: pd.Series) -> pd.Series:
    """The p-values of a family of comparisons, corrected for their number (Holm, 1979)."""
    order = p.dropna().sort_values()
    return (order * np.arange(len(order), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def effects(frame: pd.DataFrame) -> pd.DataFrame:
    """Each variant against its base, pair by pair of the same random seed and images."""
    rows = []
    for _, own in frame[frame.base != ""].groupby("variant", sort=False):
        pairs = own.merge(
            frame[frame.variant == own.base.iloc[0]], on=["seed", "split", "device"], suffixes=("", "_base")
        )
        if not len(pairs):
            continue
        row = {name: own[name].iloc[0] for name in ("group", "variant", "base", "change", "parameters")}
        row |= {"pairs": len(pairs), "mean": pairs.last5_mean.mean()}
        for name, scale in (("last5_mean", 1), ("last5_min", 1), ("test_loss", 1000)):
            compared = paired(scale * (pairs[name] - pairs[f"{name}_base"]), pairs.split)
            row |= {f"{name}_{key}".rstrip("_"): value for key, value in compared.items()}
        alone = (pairs.commit == pairs.commit_base) & (pairs.device == "cpu")  # on one machine, and not on a shared GPU
        rows.append(row | {"time": (pairs.seconds / pairs.seconds_base)[alone].median()})
    found = pd.DataFrame(rows)
    return found.assign(p_mean=holm(found.last5_mean_p), p_lowest=holm(found.last5_min_p)).round(5) if rows else found


def effects_table(frame: pd.DataFrame, by_size: bool = True) -> str:
    """`effects` for reading: differences with their intervals, the largest first or in the order of the runs."""
    found = effects(frame)
    rows: list[dict[str, object]] = []
    if found.empty:
        return "No pair is finished yet."
    if found.base.nunique() == 1:
        base = frame[frame.variant == found.base.iloc[0]]
        parameters, mean = f"{base.parameters.iloc[0]:,}", f"{base.last5_mean.mean():.3f}"
        rows.append({"change": "none", "parameters": parameters, "pairs": "", "mean": mean})
    for own in (found.sort_values("last5_mean", ascending=False) if by_size else found).to_dict("records"):
        row = {"change": own["change"], "parameters": f"{own['parameters']:,}", "pairs": own["pairs"]}
        row |= {"mean": f"{own['mean']:.3f}", "time": "" if np.isnan(own["time"]) else f"{own['time']:.2f}"}
        for heading, name in (("Δ mean", "last5_mean"), ("Δ lowest", "last5_min"), ("Δ loss", "test_loss")):
            row[heading] = f"{own[name]:+.3f}"
            if not np.isnan(own[f"{name}_low"]):
                row[heading] += f" ({own[f'{name}_low']:+.3f} to {own[f'{name}_high']:+.3f})"
        for heading, name in (("p mean", "p_mean"), ("p lowest", "p_lowest")):
            row[heading] = "" if np.isnan(own[name]) else f"{own[name]:.3f}"
        rows.append(row)
    return markdown(rows)


def summary_table(frame: pd.DataFrame, target: float | None = TARGET) -> str:
    """Each variant by itself; with a target, also how many runs hold it in each of the last five epochs."""
    rows = []
    for _, own in frame.sort_values("parameters", ascending=False, kind="stable").groupby("variant", sort=False):
        row = {"net and recipe": own.change.iloc[0], "parameters": f"{own.parameters.iloc[0]:,}", "runs": len(own)}
        row["last epoch"] = f"{own['last'].mean():.2f}" + (f" ± {own['last'].std():.2f}" if len(own) > 1 else "")
        row |= {"mean of the last five": f"{own.last5_mean.mean():.3f}", "lowest": f"{own.last5_min.min():.2f}"}
        if target:
            row[f"{target:.2f} held"] = f"{(own.last5_min >= target).sum()} of {len(own)}"
        rows.append(row)
    return markdown(rows)


def steps_table(frame: pd.DataFrame) -> str:
    """The three steps, each with its own target."""
    rows = []
    for (_, own), (number, step) in zip(frame.groupby("variant"), STEPS.items(), strict=True):
        row = {"step": f"{number}: {step.theme}", "parameters": f"{own.parameters.iloc[0]:,}", "runs": len(own)}
        row["last epoch"] = f"{own['last'].mean():.2f} ± {own['last'].std():.2f}"
        row |= {"lowest of the last five": f"{own.last5_min.min():.2f}", "target": f"{step.target:.2f}"}
        row |= {"held": f"{(own.last5_min >= step.target).sum()} of {len(own)}"}
        rows.append(row | {"training images": f"{own.train_accuracy.mean():.2f}"})
    return markdown(rows)


def entries(frame: pd.DataFrame) -> pd.DataFrame:
    """The entries for the records, a row each, and what each of them holds by the rules of `variants.records`.

    `mean` and `sd` are those of the last epoch, `lowest` is the lowest of all last five epochs, `held` how many runs
    reach 99.40 in each of them. `bytes` are those of all numbers that evaluation needs. `seconds` is a run's median on
    one thread of a CPU; on a GPU several runs shared it.
    """
    rows, variants = [], GROUPS["records"].variants()
    for name, own in frame[(frame.group == "records") & frame.variant.isin(variants)].groupby("variant", sort=False):
        variant = variants[str(name)]
        row = {"name": name, "net": variant.change, "parameters": own.parameters.iloc[0]}
        row |= {"bytes": stored_bytes(variant.net()), "epochs": own.epochs.iloc[0], "seeds": len(own)}
        row |= {"mean": own["last"].mean(), "sd": own["last"].std(), "lowest": own.last5_min.min()}
        row |= {"held": (own.last5_min >= TARGET).sum(), "teacher": "yes" if variant.options is taught else "no"}
        row |= {"seconds": own.seconds.median() if (own.device == "cpu").all() else np.nan}
        rows.append(row | {fact: ", ".join(own[fact].unique()) for fact in ("hardware", "commit")})
    if not rows:
        return pd.DataFrame(columns=["name"])
    found = pd.DataFrame(rows).round({"mean": 4, "sd": 4, "seconds": 1})
    found = found.sort_values("mean", ascending=False, kind="stable", ignore_index=True)  # which decides between equals
    holds: dict[str, list[str]] = {name: [] for name in found.name}
    whole, held = found.seeds == GROUPS["records"].seeds, found.held == found.seeds
    allowed = whole & (found.parameters < 8000) & (found.epochs <= 15)
    rules = {
        "smallest": (found.parameters, held),
        "shortest": (found.epochs, held),
        "most accurate": (-found["mean"], whole),
        "fewest bytes": (found.bytes, found["mean"] >= 99.5),
    }
    for record, (minimized, reached) in rules.items():
        alone, helped = (minimized[allowed & reached & (found.teacher == word)] for word in ("no", "yes"))
        if len(alone):
            holds[found.name[alone.idxmin()]].append(record)
        if len(helped) and not helped.min() >= alone.min():
            holds[found.name[helped.idxmin()]].append(f"{record} with a teacher")
    if FASTEST in set(found.name[allowed & held]):
        holds[FASTEST].append("fastest")
    return found.assign(holds=[", ".join(holds[name]) for name in found.name]).sort_values("parameters", kind="stable")


def stored_bytes(net: torch.nn.Module) -> int:
    """The bytes of all numbers that a net needs to classify: as packed, or its parameters and statistics in float32."""
    if isinstance(net, LowBitNet):
        return len(net.pack())
    return sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values() if tensor.dim())


RULES = """
- *Smallest* and *shortest*: the fewest parameters and epochs with which all twenty runs reach 99.40 in each of the last
  five epochs.
- *Most accurate*: the highest mean of the last epoch.
- *Fewest bytes*: of all stored numbers, with 99.50 or more in the mean of the last epoch.
- *Fastest*: the fewest seconds of a run on two CPU cores, from the start of its process to its end, by an entry whose
  twenty runs reach 99.40 in each of the last five epochs. One entry was made for it and timed.

All have fewer than 8,000 parameters and at most 15 epochs. The test set decides, so the holders' figures are a little
optimistic. Nets with a teacher are ranked apart, and named where they are better. Seconds are those of one thread of a
CPU, two runs at a time, without the teacher's.
"""


def entries_table(frame: pd.DataFrame) -> str:
    """`entries` for reading, what the teacher costs, and how long the fastest takes beside the usual pipeline."""
    rows: list[dict[str, object]] = []
    for entry in entries(frame).to_dict("records"):
        row = {"entry": entry["net"], "parameters": f"{entry['parameters']:,}", "bytes": f"{entry['bytes']:,}"}
        row |= {"epochs": entry["epochs"], "last epoch": f"{entry['mean']:.3f}"}
        row["last epoch"] += "" if np.isnan(entry["sd"]) else f" ± {entry['sd']:.3f}"
        row |= {"lowest": f"{entry['lowest']:.2f}", "99.40 held": f"{entry['held']} of {entry['seeds']}"}
        row |= {"seconds": "" if np.isnan(entry["seconds"]) else f"{entry['seconds']:.0f}"}
        rows.append(row | {"holds": entry["holds"]})
    timed, epochs = runs.load_bench("records"), STEPS[3].recipe.epochs
    seconds = {name: np.array([run["seconds"][0] for run in c["runs"]]) for name, c in timed["contenders"].items()}
    usual, whole, teacher = (epochs * seconds["stock-0"], seconds["fastest"], epochs * seconds["teacher"])
    more = (
        f"*Fastest*: {timed['contenders']['fastest']['what']} on two cores of an {timed['hardware']}, beside {epochs} "
        f"times an epoch of the usual pipeline (see Speed), three times in turn: {span(whole, 0)} s and "
        f"{span(usual, 0)} s, {span(usual / whole, 1)} times as long, pair by pair. The teacher has 196,778 parameters "
        f"and learns from labels alone; {epochs} times one of its epochs, on one thread, is {span(teacher, 0)} s."
    )
    return "\n\n".join([RULES.strip(), markdown(rows), more])


def span(values: np.ndarray, digits: int) -> str:
    """The median of repeats, and their range."""
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(np.median(values), values.min(), values.max(), d=digits)


def setting(frame: pd.DataFrame) -> str:
    """Where some runs were made."""
    count = f"{len(frame):,} runs" if len(frame) > 1 else "1 run"
    where = (f"{t} thread{'s' * int(t > 1)}" for t in sorted(frame.threads.unique()))
    hardware, versions = sorted(frame.hardware.unique()), sorted(frame.torch.unique())
    return f"{count}; {', '.join([*hardware, *where])}; PyTorch {', '.join(versions)}"


def speed() -> str:
    """What the benchmark measured on the CPU, the time of a run on a GPU, and what the number of threads changes.

    Raises:
        FileNotFoundError: it was not measured.
    """
    pipelines, changes, seeds = (runs.load_bench(part) for part in ("pipelines", "changes", "seeds"))
    where = f"{pipelines['hardware']}, PyTorch {pipelines['torch_version']}, commit {pipelines['commit'][:7]}"
    count, single = seeds["count"], np.mean(seeds["single"])
    return "\n\n".join(
        [
            "Seconds per epoch, evaluation included: median and range of three repeats, measured in turn, each in a "
            f"process of its own ({where}). The usual pipeline trains an earlier solution's net (7,830 parameters) for "
            "one epoch, from torchvision's data set with PIL images and a `DataLoader`; *the same net* is that net.",
            speed_table(pipelines["contenders"]),
            "Step 3 with one thing changed:",
            speed_table(changes["contenders"]),
            f"{count} random seeds of Step 3 with `--seeds {count}` take {seeds['together']:.0f} s, start included; "
            f"one run by itself, on all threads, {single:.0f} s.",
            gpu_speed(),
            other_threads(),
        ]
    )


def gpu_speed() -> str:
    """How long a run of Step 3 takes on a GPU."""
    [plain], [graphed] = (runs.load_runs(f"study/gpu/{name}", 1) for name in ("plain", "graphs"))
    seconds = [sum(epoch["seconds"] for epoch in run["history"]) for run in (plain, graphed)]
    same = "the same bits" if plain["weights_sha256"] == graphed["weights_sha256"] else "other bits"
    return (
        f"On an {plain['hardware']}, with PyTorch {plain['torch_version']}, the {len(plain['history'])} epochs of one "
        f"run of Step 3 take {seconds[0]:.0f} s. With forward and backward pass as CUDA graphs they took "
        f"{seconds[1]:.0f} s and gave {same}; since then `--graph` replays the augmentation too."
    )


def other_threads() -> str:
    """How far another number of threads moves a run, and how far apart two random seeds are."""
    two, one = runs.load_runs("study/threads/two"), runs.load_runs("step3")
    last = [[accuracy(run["history"][-1]) for run in group] for group in (one, two)]
    moved = np.mean(np.abs(np.subtract(last[0][: len(two)], last[1])))
    apart = np.mean([abs(a - b) for a, b in itertools.combinations(last[0], 2)])
    return (
        f"On two threads in place of one, {len(two)} random seeds of Step 3 end {moved:.3f} points away on average, up "
        f"or down; two random seeds on one thread are {apart:.3f} points apart."
    )


def measured_by(command: str, name: str) -> dict[str, Any]:
    """What a command has measured and written below `results/`.

    Raises:
        FileNotFoundError: the file is not there.
    """
    path = runs.RESULTS / name
    if not path.exists():
        raise FileNotFoundError(f"no {path}: {command} writes it")
    return runs.read_json(path, dict)


def photos() -> str:
    """How pictures of digits are read, as `experiments.photos` measured it.

    Raises:
        FileNotFoundError: it was not measured.
    """
    record = measured_by("python -m experiments.photos", "photos.json")
    styles = record["styles"]
    total = {key: sum(counts[key] for counts in styles.values()) for key in next(iter(styles.values()))}
    where = f"random seed {record['seed']}, commit {record['commit'][:7]}, PyTorch {record['torch_version']}"
    return "\n\n".join(
        [
            "Drawn photographs of digits in many styles, half of them test images of MNIST, half strokes of a pen, "
            f"read as `predict.py` does with the published net of random seed 0 ({where}, scikit-image "
            f"{record['skimage_version']}). *Surer* are those that are wrong at more than 90 %.",
            photos_table(styles | {"all styles": total}),
            "Pictures that show no single digit, of which each that is not refused is wrong:",
            photos_table(record["no digits"]),
            "Sets of digits, as pictures:",
            photos_table(record["sets"]),
        ]
    )


def onnx_files() -> str:
    """What the ONNX files compute and take, and what `experiments.export` measured.

    Raises:
        FileNotFoundError: it was not measured.
    """
    record = measured_by("python -m experiments.export --all-seeds", "int8.json")
    measured = pd.json_normalize(record["runs"])  # columns as "int8.test_correct"
    rows: list[dict[str, object]] = []
    for name, file in (("float32", "final.onnx"), ("int8", "final-int8.onnx")):
        own = measured[f"{name}.test_correct"] / 100
        row: dict[str, object] = {"file": f"`{file}`", "last epoch": f"{own.mean():.3f} ± {own.std():.3f}"}
        row |= {"lowest": f"{own.min():.2f}", "against float32": interval(own - measured["float32.test_correct"] / 100)}
        numbers, size = (f"{measured[f'{name}.bytes_{of}'][0]:,}" for of in ("stored", "of_file"))
        rows.append(row | {"numbers": numbers, "file size": size})
    rows[0]["against float32"] = ""
    more = measured["int8 per channel.bytes_stored"][0] - measured["int8.bytes_stored"][0]
    loss = 1000 * (measured["int8 per channel.training_loss"] - measured["int8.training_loss"])
    versions = f"onnxruntime {record['onnxruntime_version']}, onnx {record['onnx_version']}"
    return "\n\n".join(
        [
            "`final.onnx` (float32) and `final-int8.onnx` (8 bits) are the published net of random seed 0. They take "
            "`images`, float32 (N, 1, 28, 28), and give `logits`, float32 (N, 10), the largest at the digit. From a "
            "pixel of 0 to 255, white digit on black, centred as in MNIST:",
            f"```\ninput = pixel / 255 / {STD}\n```",
            "The background is 0 and stays 0; no mean is subtracted. The net's first layer, deslanting, samples a "
            "grid. onnxruntime cannot quantize ONNX's `GridSample`, onnxruntime-web 1.30 does not have it on WebGL "
            "and WebNN, and TensorFlow Lite has no such operator. As the shear moves pixels within their rows, both "
            "files multiply each row by the weights of its interpolation instead (opset 13), in float32. What follows "
            "is 8 bits in `final-int8.onnx`, weights and values between the layers, with one scale per tensor; for "
            "hardware with integers only, cut it at the first `QuantizeLinear`, whose input is the deslanted image.",
            f"Both files of each of the {len(measured)} random seeds, on the 10,000 test images ({versions}, "
            f"{record['hardware']}, commit {record['commit'][:7]}); in brackets the 95 % interval. *Numbers* are the "
            "bytes of weights, biases, scales and zero points.",
            markdown(rows),
            "The ranges of the 8-bit values are those of 1,000 training images. A scale for each channel of the "
            f"weights needs {more:,} bytes more, and changes the loss on 10,000 other training images by "
            f"{interval(loss)} thousandths; it was to be taken if that interval lay below zero.",
        ]
    )


def interval(difference: pd.Series) -> str:
    """The mean of paired differences with its 95 % interval."""
    found = paired(difference, pd.Series(0, index=difference.index))
    return f"{found['']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"


def photos_table(tables: dict[str, dict[str, int]]) -> str:
    """How many pictures were read right, wrong, wrong and surer than 90 %, and refused, a row per kind."""
    keys = {"n": "pictures", "right": "right", "wrong": "wrong", "sure": "surer", "refused": "refused"}
    rows: list[dict[str, object]] = []
    for what, counts in tables.items():
        rows.append({"what": what, **{keys[key]: f"{count:,}" for key, count in counts.items()}})
    return markdown(rows)


def speed_table(contenders: dict[str, Run]) -> str:
    """Seconds per epoch, a row per contender, against the first one on as many threads in the same repeat."""
    rows: list[dict[str, object]] = []
    first: dict[int, np.ndarray] = {}
    for contender in contenders.values():
        seconds = np.array([np.mean(run["seconds"]) for run in contender["runs"]])
        ratios = seconds / first.setdefault(contender["threads"], seconds)
        row = {"what": contender["what"], "threads": contender["threads"]}
        for name, values in (("seconds per epoch", seconds), ("times as long", ratios)):
            row[name] = span(values, 2)
        rows.append(row)
    return markdown(rows)


def markdown(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table: the first column to the left, the others to the right."""
    frame = pd.DataFrame(rows).fillna("")
    align = ["left"] + ["right"] * (len(frame.columns) - 1)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)
