"""Axis expressions: what an axis of an array is made of.

An axis is fixed, or the units of a label, or a row-major product of axes (what a
reshape makes), or a concatenation of axes. Nesting of labels is not part of the
expression: it is a property of the label (`Label.parents` in `spec`).

Every operation on labelled arrays goes through `map_blocks`, which takes an array
apart until each of its axes is either fixed or the units of one label.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import UnionType

import jax
import jax.numpy as jnp
import numpy as np


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


@dataclass(frozen=True)
class Block:
    """What the axes of a block of an array are.

    Attributes:
        atoms: one per axis of the block.
        origins: for each axis of the block the axis of the array that it came from.
    """

    atoms: tuple[Atom, ...]
    origins: tuple[int, ...]


def map_blocks(
    array: jax.Array, axes: Sequence[Axis], fn: Callable[[jax.Array, Block], jax.Array]
) -> jax.Array:
    """Apply a function to every block of an array and put the blocks together again.

    A block has only `Fixed` and `Units` axes: products are reshaped into one axis per
    factor, concatenations are cut into their parts.

    Args:
        array: any shape.
        axes: one expression per axis of `array`, of the same sizes.
        fn: `(values, block) -> values` of the same shape.

    Returns:
        An array of the shape of `array`.
    """
    return _map(array, tuple(axes), tuple(range(len(axes))), fn)


def blocks(array: jax.Array, axes: Sequence[Axis]) -> list[tuple[jax.Array, Block]]:
    """Take an array apart into the blocks that `map_blocks` would visit.

    Args:
        array: any shape.
        axes: one expression per axis of `array`, of the same sizes.

    Returns:
        `(values, block)` pairs, row-major over the parts of concatenations.
    """
    found = []

    def visit(values: jax.Array, block: Block) -> jax.Array:
        found.append((values, block))
        return values

    map_blocks(array, axes, visit)
    return found


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
        yield from views([_member(axis, family.split, position) for axis in axes])


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


def placed(
    block: Block, parents: Mapping[str, Sequence[str]]
) -> list[tuple[int, tuple[int, ...], str]]:
    """Find the labels on the axes of a block, parents before what is nested in them.

    Args:
        block: what the axes are.
        parents: label -> the labels it is nested in, outermost first.

    Returns:
        `(axis, axes of the parents, label)` for every `Units` axis.
    """
    names = [atom.label if isinstance(atom, Units) else None for atom in block.atoms]
    found = [
        (axis, tuple(names.index(parent) for parent in parents.get(name, ())), name)
        for axis, name in enumerate(names)
        if name is not None
    ]
    return sorted(found, key=lambda place: len(place[1]))


def places_of(
    block: Block, label: str, parents: Mapping[str, Sequence[str]]
) -> list[tuple[int, tuple[int, ...]]]:
    """Find the axes of a block over which the units of a label can be compared.

    Where units of a nested label lie along with those of the label, only the nested
    ones can be: theirs is the order that differs between models.

    Args:
        block: what the axes are.
        label: the label.
        parents: label -> the labels it is nested in, outermost first.

    Returns:
        `(axis, axes of the parents)` for every place; none if something nested in the
        label is there too.
    """
    found = placed(block, parents)
    if any(label in parents.get(name, ()) for _, _, name in found):
        return []
    return [(axis, lead) for axis, lead, name in found if name == label]


def units_last(block: jax.Array, axis: int, lead: Sequence[int]) -> jax.Array:
    """Bring a block to shape (samples, *parent units, units).

    Args:
        block: any shape.
        axis: the axis of the units.
        lead: the axes of the parents' units, outermost first.

    Returns:
        The block with all other axes flattened into one, which leads.
    """
    moved = jnp.moveaxis(block, (*lead, axis), range(-len(lead) - 1, 0))
    return moved.reshape(-1, *moved.shape[block.ndim - len(lead) - 1 :])


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


def _factors(axis: Axis) -> tuple[Axis, ...]:
    if isinstance(axis, Product):
        return tuple(f for factor in axis.factors for f in _factors(factor))
    return (axis,)


def _map(array, axes, origins, fn):
    shape = array.shape
    pairs = [
        (f, o) for axis, o in zip(axes, origins, strict=True) for f in _factors(axis)
    ]
    axes, origins = tuple(f for f, _ in pairs), tuple(o for _, o in pairs)
    array = array.reshape([axis.size for axis in axes])
    for index, axis in enumerate(axes):
        if isinstance(axis, Concat) or _is_split(axis, axes):
            parts = _parts_at(axes, index)
            ends = np.cumsum([part[index].size for part in parts])[:-1]
            pieces = jnp.split(array, ends, axis=index)
            mapped = [
                _map(piece, part, origins, fn)
                for piece, part in zip(pieces, parts, strict=True)
            ]
            return jnp.concatenate(mapped, axis=index).reshape(shape)
    return fn(array, Block(_atoms(axes), origins)).reshape(shape)


def _is_split(axis, axes):
    """Whether some family runs over a fixed axis."""
    return isinstance(axis, Fixed) and any(
        isinstance(other, Family) and other.split == axis.split for other in axes
    )


def _parts_at(axes, index):
    """Return what all axes are for every part that one of them is cut into."""
    axis = axes[index]
    if isinstance(axis, Concat):
        return [(*axes[:index], part, *axes[index + 1 :]) for part in axis.parts]
    return [
        tuple(
            Fixed(1) if number == index else _member(other, axis.split, position)
            for number, other in enumerate(axes)
        )
        for position in range(axis.size)
    ]


def _member(axis, split, position):
    match axis:
        case Family(number, members) if number == split:
            return members[position]
        case Family(number, members):
            return Family(number, tuple(_member(m, split, position) for m in members))
        case Product(factors):
            return Product(tuple(_member(f, split, position) for f in factors))
        case Concat(parts):
            return Concat(tuple(_member(p, split, position) for p in parts))
    return axis


def _atoms(axes: Sequence[Axis]) -> tuple[Atom, ...]:
    return tuple(axis for axis in axes if isinstance(axis, (Fixed, Units)))
