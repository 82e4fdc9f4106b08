"""Axis expressions: what an axis of an array is made of.

An axis is fixed, or the units of a label, or a row-major product of axes (what a
reshape makes), or a concatenation of axes. Nesting of labels is not part of the
expression: it is a property of the label (`Label.parents`, its outer labels).
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType


@dataclass(frozen=True)
class Fixed:
    """An axis whose positions may not be permuted.

    Attributes:
        size: number of positions.
        split: a number by which families over this axis refer to it; None if none do.
    """

    size: int
    split: int | None = None

    def __str__(self) -> str:
        return str(self.size) if self.split is None else f"{self.size}#{self.split}"

    def labels(self) -> tuple[str, ...]:
        """The labels on this axis, repeats included: none."""
        return ()

    def renamed(self, names: Mapping[str, str]) -> "Fixed":
        """Return the axis with its labels renamed."""
        return self


@dataclass(frozen=True)
class Units:
    """An axis that runs over the units of a label."""

    label: str
    size: int

    def __str__(self) -> str:
        return self.label

    def labels(self) -> tuple[str, ...]:
        """The label."""
        return (self.label,)

    def renamed(self, names: Mapping[str, str]) -> "Units":
        """Return the axis with its labels renamed."""
        return Units(names[self.label], self.size)


@dataclass(frozen=True)
class Product:
    """A row-major product of axes: the first factor varies slowest."""

    factors: tuple["Axis", ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return math.prod(factor.size for factor in self.factors)

    def __str__(self) -> str:
        return "*".join(_wrapped(factor, Product | Concat) for factor in self.factors)

    def labels(self) -> tuple[str, ...]:
        """The labels on this axis, repeats included."""
        return tuple(name for factor in self.factors for name in factor.labels())

    def renamed(self, names: Mapping[str, str]) -> "Product":
        """Return the axis with its labels renamed."""
        return Product(tuple(factor.renamed(names) for factor in self.factors))


@dataclass(frozen=True)
class Concat:
    """A concatenation of axes."""

    parts: tuple["Axis", ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return sum(part.size for part in self.parts)

    def __str__(self) -> str:
        return "+".join(_wrapped(part, Concat) for part in self.parts)

    def labels(self) -> tuple[str, ...]:
        """The labels on this axis, repeats included."""
        return tuple(name for part in self.parts for name in part.labels())

    def renamed(self, names: Mapping[str, str]) -> "Concat":
        """Return the axis with its labels renamed."""
        return Concat(tuple(part.renamed(names) for part in self.parts))


@dataclass(frozen=True)
class Family:
    """An axis that is something else at every position of another, fixed axis.

    Attributes:
        split: the number of that axis; it is on the same array.
        members: one axis per position, all of one size.
    """

    split: int
    members: tuple["Axis", ...]

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.members[0].size

    def __str__(self) -> str:
        return f"{{{'|'.join(map(str, self.members))}}}#{self.split}"

    def labels(self) -> tuple[str, ...]:
        """The labels on this axis, repeats included."""
        return tuple(name for member in self.members for name in member.labels())

    def renamed(self, names: Mapping[str, str]) -> "Family":
        """Return the axis with its labels renamed."""
        members = tuple(member.renamed(names) for member in self.members)
        return Family(self.split, members)


Axis = Fixed | Units | Product | Concat | Family
Atom = Fixed | Units


def labels_by_block(axes: Sequence[Axis]) -> Iterator[tuple[str, ...]]:
    """Yield the labels of every block that an array with these axes is cut into.

    Args:
        axes: one expression per axis.

    Yields:
        The labels on the axes of a block, repeats included.
    """
    return (tuple(itertools.chain(*block)) for block in labels_by_axis(axes))


def labels_by_axis(axes: Sequence[Axis]) -> Iterator[tuple[tuple[str, ...], ...]]:
    """Yield the labels of every block, each axis by itself.

    Args:
        axes: one expression per axis.

    Yields:
        Per axis the labels that are on it in a block, repeats included.
    """
    for view in views(axes):
        yield from itertools.product(*map(_choices, view))


def views(axes: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """Yield the axes as they are at every position that families tell apart.

    Args:
        axes: one expression per axis.

    Yields:
        One expression per axis, none with a family in it.
    """
    family = next((family for axis in axes for family in families_in(axis)), None)
    if family is None:
        yield tuple(axes)
        return
    for position in range(len(family.members)):
        yield from views([member_of(axis, family.split, position) for axis in axes])


def member_of(axis: Axis, split: int, position: int) -> Axis:
    """Return what an axis is at one position of the axis that families run over.

    Args:
        axis: the expression.
        split: the number of the axis that the families run over.
        position: along that axis.

    Returns:
        The expression with those families replaced by their members.
    """
    match axis:
        case Family(number, members) if number == split:
            return members[position]
        case Family(number, members):
            return Family(number, tuple(member_of(m, split, position) for m in members))
        case Product(factors):
            return Product(tuple(member_of(f, split, position) for f in factors))
        case Concat(parts):
            return Concat(tuple(member_of(p, split, position) for p in parts))
    return axis


def factors_of(axis: Axis) -> tuple[Axis, ...]:
    """Return the factors of an axis, none of them a product."""
    if isinstance(axis, Product):
        return tuple(f for factor in axis.factors for f in factors_of(factor))
    return (axis,)


def families_in(axis: Axis) -> list[Family]:
    """Return the families in an axis expression, outer ones first."""
    own = [axis] if isinstance(axis, Family) else []
    return own + [family for child in _children(axis) for family in families_in(child)]


def atoms_in(axis: Axis) -> list[Atom]:
    """Return what an axis expression is made of, from left to right."""
    if isinstance(axis, Fixed | Units):
        return [axis]
    return [atom for child in _children(axis) for atom in atoms_in(child)]


def map_atoms(axis: Axis, fn: Callable[[Atom], Atom]) -> Axis:
    """Rebuild an axis expression of the same form from other atoms."""
    if isinstance(axis, Fixed | Units):
        return fn(axis)
    children = tuple(map_atoms(child, fn) for child in _children(axis))
    return (
        Family(axis.split, children)
        if isinstance(axis, Family)
        else type(axis)(children)
    )


def _children(axis: Axis) -> tuple[Axis, ...]:
    match axis:
        case Product(children) | Concat(children) | Family(_, children):
            return children
    return ()


def _wrapped(axis: Axis, kinds: type | UnionType) -> str:
    return f"({axis})" if isinstance(axis, kinds) else str(axis)


def _choices(axis: Axis) -> list[tuple[str, ...]]:
    match axis:
        case Concat(parts):
            return [choice for part in parts for choice in _choices(part)]
        case Product(factors):
            blocks = itertools.product(*map(_choices, factors))
            return [tuple(itertools.chain(*block)) for block in blocks]
    return [axis.labels()]
