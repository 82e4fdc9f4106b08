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

    def parts(self) -> "Iterator[Piece]":
        """Yield the piece a few entries at a time, which stay in a fast cache."""
        for start in range(0, len(self.base), CHUNK):
            part = slice(start, start + CHUNK)
            models = tuple(model[part] for model in self.models)
            yield replace(self, base=self.base[part], models=models)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weight of each model."""
        return tuple(map(float, self.options["weight"]))


# Returns what a method makes of a piece: a leaf's entries, or what to add to the base.
Rule = Callable[[Piece], np.ndarray]
