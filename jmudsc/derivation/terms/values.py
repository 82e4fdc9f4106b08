"""Values: what a walk knows of one value of a program, besides its shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NewType

from jmudsc.derivation.terms.axis_terms import Term

Number = NewType("Number", int)  # of a value; equal values have equal numbers


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
    """The entries of a value are positions along an axis (see `rules.positions`).

    Attributes:
        term: the axis that they are positions of.
        shifted: a number was added, as for wrapping negative positions around; such a
            value may only be thrown away.
        never: the entries are False whatever the order of the units.
    """

    term: Term
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
    """An axis is in the order of the unit that an index picks elsewhere.

    Attributes:
        term: the axis picked from.
        index: number of the index value; equal values have equal numbers.
        axes: for each axis of the index value the axis of this value along which it
            varies; None where it has one position.
        place: where the index value can be read; None inside a branch.
    """

    term: Term
    index: Number
    axes: tuple[int | None, ...]
    place: Place | None = field(compare=False)

    def moved(self, where: Mapping[int, int]) -> "Pick | None":
        """Renumber the axes; None if one that the index varies along is gone."""
        axes = [None if axis is None else where.get(axis, -1) for axis in self.axes]
        return None if -1 in axes else replace(self, axes=tuple(axes))


PickSet = frozenset[Pick]
Picks = tuple[PickSet, ...]  # one set per axis; empty if there are none


@dataclass(frozen=True)
class Picked:
    """What an equation picks by index values, one position of an axis at a time.

    Attributes:
        source: the operand that it picks from.
        picks: in the order of which units the axes that are left come out.
    """

    source: int = 0
    picks: PickSet = frozenset()


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
            no value of the program (see `interactions`).
    """

    axes: list[Term]
    is_data: bool = False
    tag: Tag | Columns | None = None
    number: Number = Number(-1)
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


def carried(
    ins: Sequence[Value],
    maps: Sequence[Mapping[int, int]],
    rank: int,
    picked: Picked | None = None,
) -> Picks:
    """Return the picks of a value that is put together from others.

    Args:
        ins: the others.
        maps: for each of them, which of its axes is which axis of the value.
        rank: number of axes of the value.
        picked: what is picked from one of them.

    Returns:
        The picks; empty if there are none.
    """
    picked = picked or Picked()
    out: list[PickSet] = [frozenset()] * rank
    for number, (value, where) in enumerate(zip(ins, maps, strict=True)):
        new = picked.picks if number == picked.source else frozenset()
        there = ((axis, place) for axis, place in where.items() if place < rank)
        for axis, place in there:
            moved = (pick.moved(where) for pick in value.picks_on(axis))
            out[place] |= {pick for pick in moved if pick is not None} | new
    return tuple(out) if any(out) else ()
