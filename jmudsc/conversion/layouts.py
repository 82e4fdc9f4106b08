"""Layouts: how the axes of a weight become those of another library."""

from collections.abc import Sequence

import numpy as np

from jmudsc.conversion.source import Layout

Shape = Sequence[int]


def order_of(layout: Layout, axes: int) -> tuple[int, ...]:
    """Return the axes of a weight in the order (*window, in, out).

    Args:
        layout: how it lies.
        axes: how many there are.

    Example:
        >>> order_of("torch", 4), order_of("torch", 2), order_of("jax", 2)
        ((2, 3, 1, 0), (1, 0), (0, 1))
    """
    if layout == "jax" or axes < 2:
        return tuple(range(axes))
    return (*range(2, axes), 1, 0)


def is_split(shape: Shape, wanted: Shape) -> bool:
    """Whether a shape is another one with axes split, in order; equal ones are too.

    Example:
        >>> is_split((12, 8), (12, 2, 4)), is_split((8, 12), (12, 2, 4))
        (True, False)
    """
    rest = list(wanted)
    for size in shape:
        product = 1
        while rest and product * rest[0] <= size and (product < size or rest[0] == 1):
            product *= rest.pop(0)
        if product != size:
            return False
    return not rest


def fitting(shape: Shape, wanted: Shape) -> list[Layout]:
    """Return the layouts by which a weight may have become one of another shape.

    Args:
        shape: of the weight in the file.
        wanted: of the weight in the network.
    """
    layouts: tuple[Layout, ...] = ("torch", "jax")
    return [x for x in layouts if is_split(_moved(shape, x), wanted)]


def laid_out(array: np.ndarray, layout: Layout, wanted: Shape) -> np.ndarray:
    """Return a weight with the axes of a network.

    Args:
        array: the weight; its layout fits.
        layout: how it lies.
        wanted: the shape that it is to have.
    """
    moved = array.transpose(order_of(layout, array.ndim))
    return np.ascontiguousarray(moved).reshape(wanted)


def _moved(shape: Shape, layout: Layout) -> list[int]:
    return [shape[axis] for axis in order_of(layout, len(shape))]
