"""Leaf changes: all that one adapter does to one leaf of the base."""

from dataclasses import dataclass

import numpy as np

from jmudsc.finetunes.leaf_layout import Layout
from jmudsc.finetunes.piece import CHUNK
from jmudsc.lazy import Leaf, present
from jmudsc.lora.lora import Update


@dataclass(frozen=True, eq=False)
class LowRank:
    """A low-rank update, where it goes.

    Attributes:
        update: the update.
        target: what the adapter calls it.
        layer: which entry of the first axis of the leaf it changes; None for all.
        layout: how what it changes is cut into matrices (in, out).
        window_first: of a convolution, whether its window is before its inputs.
    """

    update: Update
    target: str
    layer: int | None
    layout: Layout
    window_first: bool = False


@dataclass(frozen=True, eq=False)
class Offset:
    """What is added to a bias.

    Attributes:
        value: what is added.
        scale: what it is times.
        target: what the adapter calls the layer.
        layer: which entry of the first axis of the leaf it changes; None for all.
    """

    value: Leaf
    scale: float
    target: str
    layer: int | None


@dataclass(frozen=True, eq=False)
class Whole:
    """What takes the place of a leaf.

    Attributes:
        value: the new leaf.
        name: what the adapter calls it.
        layer: which entry of the first axis of the leaf it is; None for all.
        is_turned: whether its axes are (out, in, *window), those of the leaf (*window,
            in, out).
    """

    value: Leaf
    name: str
    layer: int | None
    is_turned: bool = False


@dataclass(frozen=True, eq=False)
class Change:
    """All that one adapter does to one leaf: it is replaced, then added to.

    Attributes:
        shape: of the leaf.
        wholes: what takes its place.
        lows: the low-rank updates.
        offsets: what is added to a bias.
    """

    shape: tuple[int, ...]
    wholes: tuple[Whole, ...] = ()
    lows: tuple[LowRank, ...] = ()
    offsets: tuple[Offset, ...] = ()

    @property
    def is_low_rank(self) -> bool:
        """Whether it is a sum of products of factors, and nothing else."""
        plain = all(low.update.magnitude is None for low in self.lows)
        return bool(self.lows) and plain and not (self.wholes or self.offsets)


def changed(base: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Add to a leaf; what nothing is added to keeps its bits.

    Args:
        base: the leaf, in the numbers to compute in.
        step: what is added.
    """
    found = np.empty(base.shape, base.dtype)
    rows, below, above = map(np.atleast_1d, (found, base, step))
    count = max(1, CHUNK * len(rows) // max(1, rows.size))
    for start in range(0, len(rows), count):  # a few, which stay in a fast cache
        part = slice(start, start + count)
        np.add(below[part], above[part], out=rows[part], casting="same_kind")
        np.copyto(rows[part], below[part], where=above[part] == 0)  # -0 + 0 is 0
    return found


def applied(change: Change, base: np.ndarray) -> np.ndarray:
    """Return a leaf as an adapter makes it.

    Args:
        change: what the adapter does.
        base: the leaf of the base, in the numbers to compute in.
    """
    start = _replaced(change, base)
    return changed(start, _added(change, start))


def step_of(change: Change, base: np.ndarray) -> np.ndarray:
    """Return what an adapter adds to a leaf.

    Args:
        change: what the adapter does.
        base: the leaf of the base, in the numbers to compute in.
    """
    return applied(change, base) - base if change.wholes else _added(change, base)


def product_at(
    layout: Layout, shape: tuple[int, ...], a: np.ndarray, b: np.ndarray
) -> np.ndarray:
    """Return a leaf of products of factors.

    Args:
        layout: how it is cut into matrices.
        shape: its shape.
        a: (matrices, in, rank).
        b: (matrices, rank, out).
    """
    if layout.letters.rstrip("i") == "o":  # that of torch: contiguous, not turned
        return (b[0].T @ a[0].T).reshape(shape)
    return layout.with_matrices(np.broadcast_to(a.dtype.type(0), shape), a @ b)


def layout_of(change: Change) -> Layout:
    """Return how the whole of a leaf of low-rank updates is cut into matrices."""
    low = change.lows[0]
    return Layout(("" if low.layer is None else "l") + low.layout.letters)


def numbers_of(change: Change) -> set[int]:
    """Return the numbers of the matrices of a leaf that have an update."""
    return {number for low in change.lows for number in _numbers(change, low)}


def factors_of(change: Change) -> dict[int, tuple[np.ndarray, np.ndarray, float]]:
    """Return the factors and the scale of each matrix of a leaf that has an update.

    Args:
        change: of low rank.

    Returns:
        Number of the matrix -> (in, rank), (rank, out) and the scale, in float64.
    """
    found = {}
    for low in change.lows:
        numbers = _numbers(change, low)
        a, b = low.update.factors(len(numbers), low.window_first, np.float64)
        for place, number in enumerate(numbers):
            found[number] = a[place], b[place], low.update.scale
    return found


def _replaced(change: Change, base: np.ndarray) -> np.ndarray:
    """Return a leaf with what takes its place."""
    found = base.copy() if change.wholes else base
    for whole in change.wholes:
        value = np.asarray(present(whole.value)).astype(base.dtype)
        if whole.is_turned:
            value = value.transpose(*range(2, value.ndim), 1, 0)
        found[_at(whole.layer)] = value
    return found


def _added(change: Change, base: np.ndarray) -> np.ndarray:
    """Return what is added to a leaf that has been replaced, if it was."""
    if len(change.lows) == 1 and change.lows[0].layer is None and not change.offsets:
        return _low_step(change.lows[0], base)
    step = np.zeros_like(base)
    for low in change.lows:
        at = _at(low.layer)
        step[at] += _low_step(low, base[at])
    for offset in change.offsets:
        value = np.asarray(present(offset.value)).astype(base.dtype)
        step[_at(offset.layer)] += value * base.dtype.type(offset.scale)
    return step


def _numbers(change: Change, low: LowRank) -> range:
    """Return the numbers of the matrices of a leaf that an update is of."""
    shape = change.shape if low.layer is None else change.shape[1:]
    count = low.layout.sizes(shape)[0]
    first = (low.layer or 0) * count
    return range(first, first + count)


def _low_step(low: LowRank, base: np.ndarray) -> np.ndarray:
    """Return what one update adds to what it changes.

    With a magnitude m that becomes m (W + s A B) / ||W + s A B||, the norm over what
    goes in, for each output (DoRA, Liu et al. 2024, arXiv:2402.09353, eq. 5).
    """
    count, update = low.layout.sizes(base.shape)[0], low.update
    a, b = update.factors(count, low.window_first, base.dtype)
    b = b * base.dtype.type(update.scale)
    if update.magnitude is None:
        return product_at(low.layout, base.shape, a, b)
    own = low.layout.matrices(base).astype(np.float64)
    total = own + a @ b
    norm = np.linalg.norm(total, axis=1, keepdims=True)
    magnitude = np.asarray(present(update.magnitude)).astype(np.float64)
    total *= magnitude / np.where(norm == 0, 1, norm)
    return low.layout.with_matrices(base, (total - own).astype(base.dtype))


def _at(layer: int | None):
    return ... if layer is None else layer
