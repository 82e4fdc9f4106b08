"""Values: what a walk knows of one value of a program, besides its shape."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a value of a program is.

    Attributes:
        var: the value.
        loops: the `scan` equations around it, outermost first.
    """

    var: Any
    loops: tuple[Any, ...] = ()

    def inside(self) -> "Place":
        """Return the place as seen from inside the outermost loop."""
        return Place(self.var, self.loops[1:])


@dataclass(frozen=True)
class Tag:
    """The entries of a value are positions along an axis (see `positions`).

    Attributes:
        term: the axis that they are positions of.
        shifted: a number was added, as for wrapping negative positions around; such a
            value may only be thrown away.
        never: the entries are False whatever the order of the units.
    """

    term: int
    shifted: bool = False
    never: bool = False


@dataclass(frozen=True)
class Columns:
    """The last axis of an index value puts positions of several axes side by side.

    Attributes:
        tags: one per column; None for one that holds no such positions.
    """

    tags: tuple[Tag | None, ...]


@dataclass(frozen=True)
class Pick:
    """An axis is in the order of the unit that an index picks elsewhere (see `picks`).

    Attributes:
        term: the axis picked from.
        index: number of the index value; equal values have equal numbers.
        axes: for each axis of the index value the axis of this value along which it
            varies; None where it has one position.
        place: where the index value can be read; None inside a branch.
    """

    term: int
    index: int
    axes: tuple[int | None, ...]
    place: Place | None = field(compare=False)


Picks = tuple[frozenset[Pick], ...]  # one set per axis; empty if there are none


@dataclass(frozen=True)
class Value:
    """One value of a program.

    Attributes:
        axes: one term per axis.
        is_data: whether it depends on the batch.
        tag: what its entries are positions of, if they are.
        number: values with the same number are equal; negative if it has none yet.
        picks: per axis, in the order of which picked units it is.
        is_picked: whether it depends on the batch only by which entries of leaves it
            has: kernels of chosen experts, embeddings of tokens.
        apart: the axes on which no unit goes with another of the same axis, if it is
            no value of the program (see `meetings`).
    """

    axes: list[int]
    is_data: bool = False
    tag: Tag | Columns | None = None
    number: int = -1
    picks: Picks = ()
    is_picked: bool = False
    apart: frozenset[int] = frozenset()

    @property
    def nearness(self) -> int:
        """How near it is to the batch: made of leaves, picked from leaves, or data."""
        return 2 * self.is_data - self.is_picked

    def picks_on(self, axis: int) -> frozenset[Pick]:
        """The picks of one axis."""
        return self.picks[axis] if self.picks else frozenset()
