"""Largest: what entries must reach to be among the largest, found without sorting them.

A sample of the entries tells between which two magnitudes the threshold lies. One pass
counts what is larger and gathers what lies between, a few in a hundred, of which the
threshold is one. It is exact: where the sample misled, the magnitudes are taken farther
apart, and in the end all are gathered.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from jmudsc.finetunes.piece import Entries

# Of so few entries all are gathered; else so many are sampled, in so many places.
FEW = 1 << 17
SAMPLE, PLACES = 1 << 15, 64
# How far from its place in the sample a threshold is looked for, in standard errors.
_FAR = (8.0, 64.0)
# Between which all magnitudes are.
_LEAST, _MOST = np.float32(-1), np.float32(np.inf)


@dataclass(eq=False)
class _Tally:
    """How many entries of a model are above, between and at two magnitudes.

    Attributes:
        low: the lower magnitude.
        high: the upper one.
        above: how many are larger than the upper one.
        at_high: how many are as large.
        at_low: how many are as large as the lower one.
        between: those that are larger than the lower and smaller than the upper one.
    """

    low: np.floating
    high: np.floating
    above: int = 0
    at_high: int = 0
    at_low: int = 0
    between: list[np.ndarray] = field(default_factory=list)

    def add(self, sizes: np.ndarray) -> None:
        """Count some magnitudes."""
        self.above += int(np.count_nonzero(sizes > self.high))
        self.at_high += int(np.count_nonzero(sizes == self.high))
        if self.low < self.high:
            self.at_low += int(np.count_nonzero(sizes == self.low))
            inside = sizes > self.low
            inside &= sizes < self.high
            self.between.append(sizes[np.flatnonzero(inside)])

    def largest(self, rank: int) -> np.floating | None:
        """Return the entry of a rank, the largest being 1; None if it is elsewhere."""
        rank -= self.above
        if rank <= 0:
            return None
        if rank <= self.at_high:
            return self.high
        rank -= self.at_high
        inside = (
            np.concatenate(self.between) if self.between else np.empty(0, np.float32)
        )
        if rank <= inside.size:
            return np.partition(inside, inside.size - rank)[inside.size - rank]
        return self.low if rank <= inside.size + self.at_low else None


def thresholds(entries: Entries, densities: Sequence[float]) -> tuple[np.floating, ...]:
    """Return the least of the largest magnitudes of each delta.

    Args:
        entries: of all models.
        densities: of each model the share that is kept, at least one entry.

    Returns:
        Of each model the magnitude that what is kept reaches; 0 where all is kept.
    """
    ranks = {
        model: max(1, int(density * entries.size))
        for model, density in enumerate(densities)
        if density < 1
    }
    found: dict[int, np.floating] = {}
    for tallies in _tallies(entries, ranks):
        left = {n: tally for n, tally in tallies.items() if n not in found}
        if not left:
            break
        _count(entries, left)
        for model, tally in left.items():
            value = tally.largest(ranks[model])
            if value is not None:
                found[model] = value
    return tuple(found.get(n, np.float32(0)) for n in range(len(densities)))


def _tallies(entries: Entries, ranks: dict[int, int]) -> Iterator[dict[int, _Tally]]:
    """Yield magnitudes around the thresholds, farther apart every time."""
    if entries.size > FEW:
        samples = _sampled(entries)
        for far in _FAR:
            yield {
                model: _around(samples[model], rank / entries.size, far)
                for model, rank in ranks.items()
            }
    yield {model: _Tally(_LEAST, _MOST) for model in ranks}


def _sampled(entries: Entries) -> list[np.ndarray]:
    """Return the sorted magnitudes of some entries of each delta."""
    length = SAMPLE // PLACES
    starts = np.linspace(0, entries.size - length, PLACES).astype(int)
    parts = [entries.read(start, start + length).deltas for start in map(int, starts)]
    return [np.sort(np.abs(np.concatenate(own))) for own in zip(*parts, strict=True)]


def _around(sample: np.ndarray, share: float, far: float) -> _Tally:
    place = (1 - share) * sample.size
    spread = far * (sample.size * share * (1 - share)) ** 0.5 + 2
    low, high = int(place - spread), int(place + spread)
    return _Tally(
        sample[low] if low >= 0 else _LEAST,
        sample[high] if high < sample.size else _MOST,
    )


def _count(entries: Entries, tallies: dict[int, _Tally]) -> None:
    for part in entries.parts():
        for model, tally in tallies.items():
            sizes = np.subtract(part.models[model], part.base)
            tally.add(np.abs(sizes, out=sizes))
