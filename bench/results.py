"""The samples of a measure, and what can be said of them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import dataclass, field

from bench.sampling import Sample


@dataclass
class Result:
    """The samples of one measure, by endpoint."""

    name: str
    what: str
    unit: str
    more_is_better: bool = False
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    failures: dict[str, list[str]] = field(default_factory=dict)

    def add(self, endpoint: str, sample: Sample) -> None:
        """With what failed in it."""
        self.samples.setdefault(endpoint, []).append(sample)
        for failure in sample.failures:
            self.fail(endpoint, failure)

    def fail(self, endpoint: str, why: str) -> None:
        self.failures.setdefault(endpoint, []).append(why)

    def median(self, endpoint: str) -> float | None:
        """None without samples."""
        values = self._values(endpoint)
        return statistics.median(values) if values else None

    def p90(self, endpoint: str) -> float | None:
        """The sample that nine of ten are no worse than; None without samples."""
        values = sorted(self._values(endpoint), reverse=self.more_is_better)
        return values[math.ceil(0.9 * len(values)) - 1] if values else None

    def parts(self, endpoint: str) -> dict[str, float]:
        """The median of each part, over the samples that have it, in the order in which they came up."""
        values: dict[str, list[float]] = {}
        for sample in self.samples.get(endpoint, ()):
            for name, value in sample.parts.items():
                values.setdefault(name, []).append(value)
        return {name: statistics.median(found) for name, found in values.items()}

    def start_methods(self, endpoint: str) -> dict[str, int]:
        """How many samples were started how, the most common first; empty where that is not said."""
        methods = Counter(sample.start_method for sample in self.samples.get(endpoint, ()))
        del methods[""]
        return dict(methods.most_common())

    @property
    def ratio(self) -> float | None:
        """How many times as good the VCH is as dockerd; None when one of them has no samples."""
        ours, theirs = self.median("vch"), self.median("dockerd")
        if not ours or not theirs:
            return None
        return ours / theirs if self.more_is_better else theirs / ours

    def _values(self, endpoint: str) -> list[float]:
        return [sample.value for sample in self.samples.get(endpoint, ())]
