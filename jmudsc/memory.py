"""Memory: what weights say of units, kept for as long as it holds.

What a leaf adds to the moments of a label's weights depends only on where the units of
the leaf's other labels go. As long as those stay, between sweeps and between balances,
it need not be computed again.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from jmudsc.moments import Moments

BUDGET = 2**30


@dataclass(frozen=True)
class Memory:
    """Moments, each with what it was computed from.

    One leaf and label take `4 * (models * units)**2` bytes. Of each the first moments
    are kept, from which every balance starts, and the latest; where both do not fit,
    the latest.

    Attributes:
        budget: bytes that may be kept; what does not fit is computed anew.
        kept: place -> state -> the moments there in that state.
    """

    budget: int = BUDGET
    kept: dict[Hashable, dict[Hashable, Moments]] = field(default_factory=dict)

    def recall(
        self, place: Hashable, state: Hashable, compute: Callable[[], Moments]
    ) -> Moments:
        """Return the moments at a place in a state, computed if they are not known.

        Args:
            place: what they are of.
            state: all that they depend on and that changes.
            compute: computes them.

        Returns:
            The moments.
        """
        versions = self.kept.setdefault(place, {})
        if state in versions:
            return versions[state]
        for old in list(versions)[1:]:
            del versions[old]
        moments = compute()
        if self.size + _bytes(moments) > self.budget:
            versions.clear()
        if self.size + _bytes(moments) <= self.budget:
            versions[state] = moments
        return moments

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        every = (m for versions in self.kept.values() for m in versions.values())
        return sum(map(_bytes, every))


def _bytes(moments: Moments) -> int:
    return moments.mean.nbytes + moments.comoment.nbytes
