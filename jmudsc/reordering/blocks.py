"""Blocks: arrays taken apart until each axis is fixed or the units of one label.

Every operation on labelled arrays goes through `map_blocks`. Arrays of numpy stay on
the host and compile nothing; those of JAX, traced or not, stay what they are.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jmudsc.spec.axes import (
    Atom,
    Axis,
    Concat,
    factors_of,
    Family,
    Fixed,
    member_of,
    Units,
)

# An array of numpy, or of JAX, traced or not; what comes out is what went in.
Values = Any


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
    array: Values, axes: Sequence[Axis], fn: Callable[[Values, Block], Values]
) -> Values:
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


def blocks(array: Values, axes: Sequence[Axis]) -> list[tuple[Values, Block]]:
    """Take an array apart into the blocks that `map_blocks` would visit.

    Args:
        array: any shape.
        axes: one expression per axis of `array`, of the same sizes.

    Returns:
        `(values, block)` pairs, row-major over the parts of concatenations.
    """
    found = []

    def visit(values: Values, block: Block) -> Values:
        found.append((values, block))
        return values

    map_blocks(array, axes, visit)
    return found


def placed(
    block: Block, outer: Mapping[str, Sequence[str]]
) -> list[tuple[int, tuple[int, ...], str]]:
    """Find the labels on the axes of a block, outer ones before what is nested in them.

    Args:
        block: what the axes are.
        outer: label -> the labels it is nested in, outermost first.

    Returns:
        `(axis, axes of its outer labels, label)` for every `Units` axis. Where an outer
        label is there more than once, the one on the same axis of the array counts.
    """
    names = _names(block)
    found = [
        (axis, _lead(name, axis, names, block, outer), name)
        for axis, name in enumerate(names)
        if name is not None
    ]
    return sorted(found, key=lambda place: len(place[1]))


def places_of(
    block: Block, label: str, outer: Mapping[str, Sequence[str]]
) -> list[tuple[int, tuple[int, ...]]]:
    """Find the axes of a block over which the units of a label can be compared.

    Where units of a nested label lie along with those of the label, only the nested
    ones can be: theirs is the order that differs between models.

    Args:
        block: what the axes are.
        label: the label.
        outer: label -> the labels it is nested in, outermost first.

    Returns:
        `(axis, axes of the outer labels)` wherever the label is; none if something
        nested in the label is there too.
    """
    names = _names(block)
    if any(label in outer.get(name, ()) for name in names if name is not None):
        return []
    return [
        (axis, _lead(label, axis, names, block, outer))
        for axis, name in enumerate(names)
        if name == label
    ]


def units_last(block: Values, axis: int, lead: Sequence[int]) -> Values:
    """Bring a block to shape (samples, *outer units, units).

    Args:
        block: any shape.
        axis: the axis of the units.
        lead: the axes of the outer labels' units, outermost first.

    Returns:
        The block with all other axes flattened into one, which leads.
    """
    places = tuple(range(-len(lead) - 1, 0))
    moved = library_of(block).moveaxis(block, (*lead, axis), places)
    return moved.reshape(-1, *moved.shape[block.ndim - len(lead) - 1 :])


def library_of(array: Any) -> Any:
    """Return `numpy` for an array of numpy, and `jax.numpy` for one of JAX."""
    return array.__array_namespace__()


def _names(block: Block) -> list[str | None]:
    return [atom.label if isinstance(atom, Units) else None for atom in block.atoms]


def _lead(
    name: str,
    axis: int,
    names: Sequence[str | None],
    block: Block,
    outer: Mapping[str, Sequence[str]],
) -> tuple[int, ...]:
    return tuple(_axis_of(p, axis, names, block) for p in outer.get(name, ()))


def _axis_of(outer: str, axis: int, names: Sequence[str | None], block: Block) -> int:
    """Return where an outer label is of the units on an axis of a block."""
    beside = [
        other
        for other, name in enumerate(names)
        if name == outer and block.origins[other] == block.origins[axis]
    ]
    return beside[0] if beside else names.index(outer)


def _map(array, axes, origins, fn):
    shape = array.shape
    pairs = [
        (f, o) for axis, o in zip(axes, origins, strict=True) for f in factors_of(axis)
    ]
    axes, origins = tuple(f for f, _ in pairs), tuple(o for _, o in pairs)
    array = array.reshape([axis.size for axis in axes])
    for index, axis in enumerate(axes):
        if isinstance(axis, Concat) or _is_split(axis, axes):
            parts = _parts_at(axes, index)
            ends = np.cumsum([part[index].size for part in parts])[:-1]
            library = library_of(array)
            pieces = library.split(array, ends, axis=index)
            mapped = [
                _map(piece, part, origins, fn)
                for piece, part in zip(pieces, parts, strict=True)
            ]
            return library.concatenate(mapped, axis=index).reshape(shape)
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
            Fixed(1) if number == index else member_of(other, axis.split, position)
            for number, other in enumerate(axes)
        )
        for position in range(axis.size)
    ]


def _atoms(axes: Sequence[Axis]) -> tuple[Atom, ...]:
    return tuple(axis for axis in axes if isinstance(axis, (Fixed, Units)))
