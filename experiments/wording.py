"""How the report says things: numbers with their spread, effects with their interval, settings, blocks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import ttest_ind, ttest_rel

from tinymnist.runs import Run


@dataclass(frozen=True)
class Effect:
    """How much higher some values are than others on average.

    Attributes:
        difference: of the means, in the unit of the values.
        low, high: its 95 % interval, by a t-test: of pairs, or Welch's.
    """

    difference: float
    low: float
    high: float

    @classmethod
    def paired(cls, values: Sequence[float], others: Sequence[float]) -> Effect:
        """Of the first values over the others, pair by pair: each pair was judged on the same images."""
        interval = ttest_rel(values, others).confidence_interval(0.95)
        return cls(statistics.mean(values) - statistics.mean(others), interval.low, interval.high)

    @classmethod
    def between(cls, values: Sequence[float], others: Sequence[float]) -> Effect:
        """Of the first values over the others."""
        interval = ttest_ind(values, others, equal_var=False).confidence_interval(0.95)
        return cls(statistics.mean(values) - statistics.mean(others), interval.low, interval.high)

    def __str__(self) -> str:
        return f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f})"

    @property
    def verdict(self) -> str:
        """In words; an interval that holds zero is no measurable effect."""
        return "worse" if self.high < 0 else "better" if self.low > 0 else "no measurable effect"


def mean_and_spread(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation."""
    spread = f"{statistics.stdev(values):.{digits}f}" if len(values) > 1 else "?"
    return f"{statistics.mean(values):.{digits}f} ± {spread}"


def setting(runs: Sequence[Run]) -> str:
    """On what runs were made, after the first of them."""
    threads = "1 thread" if runs[0]["threads"] == 1 else f"{runs[0]['threads']} threads"
    return f"{runs[0]['hardware']}, {threads}, PyTorch {runs[0]['torch_version']}"


def block(text: str) -> str:
    """A text that stands in lines of its own."""
    return f"\n\n{text}\n\n"
