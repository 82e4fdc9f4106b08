"""Moment cache: what weights say of units, kept for as long as it holds.

What leaves add to the moments of a label's weights depends only on where the units of
the leaves' other labels go. As long as those stay, between sweeps and between balances,
it need not be computed again.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jmudsc.lazy import LazyArray
from jmudsc.matching.cross_moments import CrossMoments
from jmudsc.matching.moments import Centered, Moments

# Moments, or samples of the units of every model, site by site.
Kept = Moments | CrossMoments | list[list[Centered]]
Cached = TypeVar("Cached", bound=Kept)

BUDGET = 2**31


@dataclass
class MomentCache:
    """Moments, each under what it was computed from.

    Those of a label, from all leaves that depend on the same other labels, take
    `4 * (models * units)**2` bytes, or less than half of that where only units of
    different models are compared. Of each the first moments
    are kept, from which every balance starts, and the latest; where both do not fit,
    the latest.

    Attributes:
        budget: bytes that may be kept; what does not fit is computed anew.
        kept: what moments are of -> state -> the moments in that state.
        size: bytes that are kept.
    """

    budget: int = BUDGET
    kept: dict[Hashable, dict[Hashable, Any]] = field(default_factory=dict)
    size: int = 0

    def recall(
        self, of: Hashable, state: Hashable, compute: Callable[[], Cached]
    ) -> Cached:
        """Return moments of something in a state, computed if they are not known.

        Args:
            of: what the moments are of.
            state: all that they depend on and that changes.
            compute: computes them.

        Returns:
            The moments.
        """
        versions = self.kept.setdefault(of, {})
        if state in versions:
            return versions[state]
        moments = compute()  # from an earlier version, perhaps
        self._forget(versions, list(versions)[1:])
        if self.size + _bytes(moments) > self.budget:
            self._forget(versions, list(versions))
        if self.size + _bytes(moments) <= self.budget:
            versions[state] = moments
            self.size += _bytes(moments)
        return moments

    def known(self, of: Hashable, state: Hashable) -> Any:
        """Return moments of something in a state; None if they are not known."""
        return self.kept.get(of, {}).get(state)

    def _forget(
        self, versions: dict[Hashable, Any], states: Sequence[Hashable]
    ) -> None:
        self.size -= sum(_bytes(versions.pop(state)) for state in states)


def budget_beside(moments: Mapping[str, Moments], budget: int | None) -> int:
    """Return what may be kept beside the moments of activations.

    Args:
        moments: of all labels; those in memory are there beside the similarities that
            are made of them.
        budget: bytes that all may take together; None for the usual.
    """
    if budget is None:
        return BUDGET
    held = sum(2 * _bytes(x) for x in moments.values())
    return min(BUDGET, max(0, budget - held))


def _bytes(kept: Kept) -> int:
    if isinstance(kept, list):
        return sum(x.nbytes for part in kept for pair in part for x in pair)
    arrays = (x for x in vars(kept).values() if hasattr(x, "nbytes"))
    return sum(x.nbytes for x in arrays if not isinstance(x, LazyArray))
