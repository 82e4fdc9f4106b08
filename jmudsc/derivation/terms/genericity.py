"""Genericity: of which values no two entries are equal, whatever the leaves.

Of equal entries `argmax`, a top-k and a sort take the first, so that their result
depends on the order of units. Entries are *generic* along an axis if they are equal
there for no leaves but a set of measure zero: those of a leaf, of a product with a leaf
that nothing else went through before, of a softmax of that. Those of a relu are not:
units that are off are all zero. Sets of leaves are bit masks.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace


class Sign(enum.IntEnum):
    """What is known of the sign of every entry, almost surely."""

    UNKNOWN = 0
    NONZERO = 1
    POSITIVE = 2


@dataclass(frozen=True)
class Along:
    """What is known of a value along one of its axes.

    Attributes:
        units: leaves of which, whatever all other leaves are, entries at different
            positions are independent without favoring any number, or else all equal
            (because they are multiplied by zero).
        is_apart: whether no two entries that differ in the position on this axis alone
            are equal, almost surely.
        is_flat: whether entries do not vary along the axis.
        is_joint: whether entries along all such axes together are independent, each of
            an entry of the free leaf of its own.
    """

    units: int = 0
    is_apart: bool = False
    is_flat: bool = False
    is_joint: bool = False


NOTHING, FLAT = Along(), Along(is_flat=True)

# The largest size told from others, and that of what grows in a loop.
MOST = 1e30


@dataclass(frozen=True)
class Genericity:
    """What is known of the entries of a value.

    Attributes:
        axes: what is known along each axis.
        leaves: the leaves that it depends on.
        free: a leaf of which, whatever all other leaves are, entries along joint axes
            are independent; 0 if there is none.
        sign: of every entry.
        is_in_place: whether each is made of the one of the free leaf at its place.
        size: about how large entries are, those of leaves and inputs taken as 1: what
            the numbers in the program make of it.
    """

    axes: tuple[Along, ...]
    leaves: int = 0
    free: int = 0
    sign: Sign = Sign.UNKNOWN
    is_in_place: bool = False
    size: float = 1.0

    @property
    def is_atomless(self) -> bool:
        """Whether no entry has any one number but with probability zero."""
        return bool(self.free) or any(a.units and a.is_apart for a in self.axes)

    def moved(self, where: Mapping[int, int], rank: int) -> "Genericity":
        """Return what is known where axes have other numbers, or are new or gone."""
        axes = [NOTHING] * rank
        for axis, new in where.items():
            axes[new] = self.axes[axis]
        return replace(self, axes=tuple(axes), is_in_place=False)

    def without_apart(self) -> "Genericity":
        """Return what is left where entries may have become equal by rounding."""
        return replace(self, axes=tuple(replace(a, is_apart=False) for a in self.axes))


def with_free(value: Genericity, *sources: tuple[int, Genericity]) -> Genericity:
    """Say that a value has the free leaf of that source which has most joint axes.

    Args:
        value: the value.
        sources: a leaf, 0 if there is none, and a value with as many axes.

    Returns:
        The value, with what is joint in that source.
    """
    leaf, source = max(
        sources, key=lambda one: (bool(one[0]), sum(a.is_joint for a in one[1].axes))
    )
    axes = tuple(
        replace(axis, is_joint=bool(leaf) and joint.is_joint)
        for axis, joint in zip(value.axes, source.axes, strict=True)
    )
    return replace(value, axes=axes, free=leaf)


def nothing(rank: int, leaves: int = 0, size: float = 1.0) -> Genericity:
    """Say of a value only which leaves it depends on, and how large it is."""
    return Genericity((NOTHING,) * rank, leaves, size=size)


def size_of(values: Iterable[Genericity]) -> float:
    """Return the size of the largest of some values."""
    return max((value.size for value in values), default=1.0)


def bounded(size: float) -> float:
    """Return a size, as large or small as any that makes a difference."""
    return min(max(size, 1 / MOST), MOST)


def leaves_of(values: Iterable[Genericity]) -> int:
    """Return the leaves that any of some values depends on."""
    leaves = 0
    for value in values:
        leaves |= value.leaves
    return leaves


def weaker(a: Genericity, b: Genericity) -> Genericity:
    """Return what is known of a value that is one of two."""
    axes = tuple(
        Along(
            x.units & y.units,
            x.is_apart and y.is_apart,
            x.is_flat and y.is_flat,
            x.is_joint and y.is_joint,
        )
        for x, y in zip(a.axes, b.axes, strict=True)
    )
    return Genericity(
        axes,
        a.leaves | b.leaves,
        a.free & b.free,
        min(a.sign, b.sign),
        size=a.size if a.size == b.size else MOST,
    )
