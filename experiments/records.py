"""The records: the smallest net, the shortest, the most accurate, that of fewest bytes; twenty random seeds each.

    python -m experiments.records                       train what is missing of every entry, and write the report
    python -m experiments.records 4-bits --seeds 3      of one entry, from random seeds 0 to 2
    python -m experiments.records --device cuda         on a GPU; the default is the CPU

`experiments/variants.py` has the entries and the rules, `records`; `results/records.csv` has what came out.
"""

from __future__ import annotations

if __name__ == "__main__":  # the imports below take seconds
    from tinymnist.cli import stop_at_once

    stop_at_once("records.py")

from experiments import report, study
from experiments.variants import GROUPS
from tinymnist.cli import OneLineParser, run_program, whole_number


def main(arguments: list[str] | None = None) -> int:
    """Train what is missing, then write the report.

    Returns:
        the exit code: 0; 1 if a training came to nothing or the report lacks a file; 2 for bad input; 130 if
        interrupted.
    """
    command, entries = OneLineParser("records.py", __doc__), list(GROUPS["records"].variants())
    command.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(entries)} (default: all)")
    command.add_argument("--seeds", type=whole_number(1, 100_000), metavar="N", help="only random seeds 0 to N-1")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda, mps or xpu")
    options = command.parse_args(arguments)
    if unknown := set(options.names) - set(entries):
        command.error(f"no entry {', '.join(sorted(unknown))}: choose from {', '.join(entries)}")
    seeds = ["--seeds", str(options.seeds)] if options.seeds else []
    names = [f"records/{name}/" for name in options.names or entries]
    return study.main([*names, *seeds, "--device", options.device]) or report.main([])


if __name__ == "__main__":
    run_program("records.py", main)
