"""Piece: one matrix, or run of entries, of one leaf of all models, to be merged."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

# Entries that are merged at once where each is merged by itself.
CHUNK = 1 << 16


@dataclass(frozen=True, eq=False)
class Piece:
    """What a rule is given.

    Attributes:
        base: of the base, in float32 (float64 if the leaf is); zeros without a base.
        models: the same of each model, of one shape: (entries,) or (in, out).
        options: option -> its value here; for an option of every model one each.
        evidence: what a method found out before, by name.
        draw: model -> a generator of random numbers of this piece.
    """

    base: np.ndarray
    models: tuple[np.ndarray, ...]
    options: Mapping[str, Any]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    draw: Callable[[int], np.random.Generator] | None = None

    @cached_property
    def deltas(self) -> tuple[np.ndarray, ...]:
        """What was trained into each model: it less the base."""
        return tuple(model - self.base for model in self.models)

    @cached_property
    def weighted(self) -> tuple[np.ndarray, ...]:
        """The deltas times the weights of their models."""
        pairs = zip(self.options["weight"], self.deltas, strict=True)
        return tuple(delta if w == 1 else float(w) * delta for w, delta in pairs)

    @property
    def entries(self) -> "Entries":
        """The entries of a piece that is a run, to be gone through."""

        def read(start: int, stop: int) -> Piece:
            models = tuple(model[start:stop] for model in self.models)
            return replace(self, base=self.base[start:stop], models=models)

        return Entries(len(self.base), read, self.options, self.evidence)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each model."""
        return tuple(map(float, self.options["weight"]))


@dataclass(frozen=True, eq=False)
class Entries:
    """The entries of one run of all models, of which a few at a time are at hand.

    Attributes:
        size: how many there are.
        read: returns those from one place to another, as a piece.
        options: as of a piece.
        evidence: as of a piece.
    """

    size: int
    read: Callable[[int, int], Piece]
    options: Mapping[str, Any]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> Iterator[Piece]:
        """Yield all of them, a few at a time, which stay in a fast cache."""
        for start in range(0, self.size, CHUNK):
            yield self.read(start, min(start + CHUNK, self.size))


# Returns what a method makes of a piece: a leaf's entries, or what to add to the base.
Rule = Callable[[Piece], np.ndarray]
