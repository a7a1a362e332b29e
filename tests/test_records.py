"""The records: their table is what the runs and the rules say, and one command makes it."""

import csv
import json
import statistics

import pandas as pd
import pytest

from experiments import records
from experiments.tables import entries, entries_table
from experiments.variants import FASTEST, GROUPS
from tinymnist import runs
from utils import count_parameters

VARIANTS = GROUPS["records"].variants()


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, str]]:
    with (runs.RESULTS / "records.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_each_row_is_what_its_twenty_records_say(table):
    assert set(table) <= set(VARIANTS)
    for name, row in table.items():
        found = [json.loads(path.read_text()) for path in (runs.RESULTS / "study/records" / name).glob("seed_*.json")]
        assert sorted(run["seed"] for run in found) == list(range(20)), name
        assert {(run["split"], run["data"]) for run in found} == {("test", "mnist")}
        assert {run["recipe"]["epochs"] for run in found} == {int(row["epochs"])}
        fives = [[epoch["test_correct"] for epoch in run["history"][-5:]] for run in found]
        assert float(row["mean"]) == pytest.approx(statistics.mean(five[-1] for five in fives) / 100, abs=1e-4)
        assert float(row["sd"]) == pytest.approx(statistics.stdev(five[-1] for five in fives) / 100, abs=1e-4)
        assert float(row["lowest"]) == min(map(min, fives)) / 100
        assert int(row["held"]) == sum(min(five) >= 9940 for five in fives)
        net = VARIANTS[name].net()
        assert int(row["parameters"]) == count_parameters(net) < 8000
        assert int(row["bytes"]) == (len(net.pack()) if hasattr(net, "pack") else 4 * (count_parameters(net) + sum(
            buffer.numel() for key, buffer in net.named_buffers() if "running" in key
        )))  # fmt: skip
        assert {run["commit"] for run in found} == {row["commit"]}
        assert (row["teacher"] == "yes") == name.endswith("-taught")


def test_who_holds_what(table):
    rows = table.values()
    alone, helped = ([row for row in rows if row["teacher"] == word] for word in ("no", "yes"))
    held, held_helped = ([row for row in some if row["held"] == row["seeds"]] for some in (alone, helped))
    holders = {
        "smallest": min(held, key=lambda row: int(row["parameters"])),
        "smallest with a teacher": min(held_helped, key=lambda row: int(row["parameters"])),
        "shortest": min(held, key=lambda row: int(row["epochs"])),
        "most accurate": max(alone, key=lambda row: float(row["mean"])),
        "fastest": table[FASTEST],
        "fewest bytes": min((row for row in alone if float(row["mean"]) >= 99.5), key=lambda row: int(row["bytes"])),
    }
    assert holders["fastest"] in held
    for record, row in holders.items():
        assert record in row["holds"].split(", "), record
    assert sum(len(row["holds"].split(", ")) for row in rows if row["holds"]) == len(holders)


def test_an_entry_that_is_not_whole_or_misses_holds_nothing():
    common = {"group": "records", "change": "", "split": "test", "device": "cpu", "hardware": "a processor"}
    made = []
    for name, epochs, last, low, seeds in (
        ("final", 15, 99.5, 99.45, 20),
        ("7-14-14-14", 15, 99.5, 99.41, 20),
        ("6-12-12-13", 15, 99.5, 99.39, 20),
        ("6-11-11-11", 15, 99.9, 99.45, 19),
        ("10-epochs", 10, 99.6, 99.45, 20),
        (FASTEST, 11, 99.5, 99.39, 20),
        ("4-bits", 16, 99.9, 99.80, 20),  # one epoch too many
        ("6-12-12-13-taught", 15, 99.4, 99.40, 20),  # smaller, and neither shorter nor better
        ("6-11-11-11-taught", 15, 99.4, 99.39, 20),
    ):
        net = VARIANTS[name].net()
        run = {"variant": name, "parameters": count_parameters(net), "epochs": epochs, "last": last, "last5_min": low}
        made += [common | run | {"seed": k, "seconds": 60.0, "commit": "abc"} for k in range(seeds)]
    frame = pd.DataFrame(made)
    holds = entries(frame).set_index("name").holds.to_dict()
    assert {name: record for name, record in holds.items() if record} == {
        "7-14-14-14": "smallest",
        "6-12-12-13": "fewest bytes",
        "10-epochs": "shortest, most accurate",
        "6-12-12-13-taught": "smallest with a teacher",
    }
    assert "| 60 |" in entries_table(frame).replace("  ", " ").replace("  ", " ").replace("  ", " ")
    assert entries(frame[frame.group == "none"]).empty


def test_the_command_trains_what_is_asked_for_and_writes_the_report(monkeypatch):
    called = []
    monkeypatch.setattr(records.study, "main", lambda arguments: called.append(arguments) or 0)
    monkeypatch.setattr(records.report, "main", lambda arguments: called.append("report") or 0)
    assert records.main(["4-bits", "final", "--seeds", "3"]) == 0
    given = ["--seeds", "3", "--device", "cpu"]
    assert called == [["records/4-bits/", "records/final/", *given], "report"]
    monkeypatch.setattr(records.study, "main", lambda arguments: 2)
    assert records.main(["--device", "cuda"]) == 2
    assert called[2:] == []


@pytest.mark.parametrize("arguments", ["5-bits", "--seeds 0", "--split test"])
def test_wrong_arguments_are_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        records.main(arguments.split())
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
