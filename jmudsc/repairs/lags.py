"""Lags: second moments of the windows of a convolution, without a copy of any window.

Two entries of a window lie a fixed distance apart, their lag. Summed over all windows,
their product is the sum of x[q] x[q + lag] over a stretch of positions q, and stretches
of entries of one lag differ at their ends only. So the products of each lag are summed
once: over what all stretches have in common, and over the short pieces at both ends,
of which each stretch is then put together. With W entries of a window per channel
these are about W 2^(d-1) products of channels in d dimensions, where copies of all
windows take W^2. Nothing is subtracted, so that nothing is lost by rounding.

With strides the positions are dealt out to as many phases, which are channels then.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jmudsc.repairs.contractions import Form, padded, Sliding, sliding_of

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclass(frozen=True)
class Dealt:
    """One axis of space with its positions dealt out to phases.

    Attributes:
        count: number of windows along it.
        phases: number of phases.
        every: every how many positions one is looked at, all others being skipped.
        step: distance of two shifts, in positions of a phase.
        shifts: number of shifts.
        places: phase and shift of each entry of a window.
    """

    count: int
    phases: int
    every: int
    step: int
    shifts: int
    places: tuple[tuple[int, int], ...]

    @property
    def edge(self) -> int:
        """Number of positions by which the first and the last stretch differ."""
        return (self.shifts - 1) * self.step

    @property
    def length(self) -> int:
        """Number of positions of a phase that are in some window."""
        return self.count + self.edge

    @property
    def pieces(self) -> list[tuple[int, int, int]]:
        """Start of each run of pieces of one length, their number, and that length."""
        ends = self.shifts - 1, self.step
        return [(0, *ends), (self.edge, 1, self.count - self.edge), (self.count, *ends)]

    @property
    def of_shift(self) -> Float[np.ndarray, "shifts pieces"]:
        """Which pieces make up the stretch of each shift."""
        total = 2 * self.shifts - 1
        first = np.arange(self.shifts)[:, None]
        piece = np.arange(total)[None]
        return ((piece >= first) & (piece < first + self.shifts)).astype(np.float32)


def dealt(axis: Sliding) -> Dealt:
    """Deal the positions of an axis out to phases.

    Args:
        axis: how windows slide along it.
    """
    stride, dilation, window = axis.stride, axis.dilation, axis.window
    if dilation % stride == 0:  # all entries of a window are in the first phase
        places = tuple((0, number) for number in range(window))
        return Dealt(axis.count, 1, stride, dilation // stride, window, places)
    ends = [divmod(number * dilation, stride) for number in range(window)]
    places = tuple((phase, shift) for shift, phase in ends)
    return Dealt(axis.count, stride, 1, 1, ends[-1][0] + 1, places)


def lags_are_cheaper(form: Form, x_shape: Sequence[int], shape: Sequence[int]) -> bool:
    """Return whether moments by lags take fewer products than by copies of windows.

    Args:
        form: of the contraction.
        x_shape: the shape of the activations.
        shape: that of the kernel.
    """
    if not form.is_convolution:
        return False
    axes = sliding_of(form, x_shape, shape)
    ways = [dealt(axis) for axis in axes]
    if any(way.count < max(way.edge, 1) for way in ways):
        return False
    numbers = form.param["dimension_numbers"].rhs_spec
    channels, window = shape[numbers[1]], math.prod(axis.window for axis in axes)
    made = shape[numbers[0]] // form.param["feature_group_count"]
    positions = math.prod(axis.count for axis in axes)
    copied = positions * window * channels * (window * channels + made)
    phases = channels * math.prod(way.phases for way in ways)
    shifts = math.prod(way.shifts for way in ways)
    lags = (math.prod(2 * way.shifts - 1 for way in ways) + 1) // 2
    length = math.prod(way.length for way in ways)
    return lags * length * phases**2 + shifts * positions * phases * made < copied


def moments_by_lags(
    form: Form, x: Array, residual: Float[Array, "groups samples made"], shape: tuple
) -> tuple[Float[Array, "groups 1 both"], Float[Array, "groups incoming both"]]:
    """Return mean and co-moment of windows and residuals; use under `jit`.

    Args:
        form: of the convolution.
        x: the activations.
        residual: one row a window.
        shape: the shape of the kernel.

    Returns:
        The mean of window entries and residuals, and the sums of the products of their
        distances from it, of window entries with both.
    """
    ways = [dealt(axis) for axis in sliding_of(form, x.shape, shape)]
    groups = form.param["feature_group_count"]
    x = padded(form, x)
    channels, count = x.shape[1] // groups, residual.shape[1]
    middle = x.mean(axis=(0, *range(2, x.ndim)), keepdims=True)
    phases = _phases(x - middle, ways, groups)
    mean = residual.mean(axis=1, keepdims=True)
    ones = jnp.ones((groups, count, 1), residual.dtype)
    along = jnp.concatenate([residual - mean, ones], axis=-1)
    cross = _crossed(phases, along, ways, channels)
    off = jnp.swapaxes(cross[..., -1:], 1, 2) / count  # from the middle, at the ends
    own = _by_entries(_stretches(phases, ways), ways, channels)
    own = own - count * jnp.swapaxes(off, 1, 2) * off
    middle = jnp.repeat(middle.reshape(groups, 1, channels), len(_entries(ways)), -1)
    return (
        jnp.concatenate([middle + off, mean], axis=-1),
        jnp.concatenate([own, cross[..., :-1]], axis=-1),
    )


def _phases(x: Array, ways: Sequence[Dealt], groups: int) -> Array:
    """Deal positions out: (groups, batch, *positions, channels and phases)."""
    for axis, way in enumerate(ways, 2):
        if way.phases == 1:
            x = jax.lax.slice_in_dim(x, 0, None, way.every, axis)
        missing = max(way.length * way.phases - x.shape[axis], 0)
        x = jnp.pad(x, [(0, missing * (n == axis)) for n in range(x.ndim)])
        x = jax.lax.slice_in_dim(x, 0, way.length * way.phases, axis=axis)
    sizes = [size for way in ways for size in (way.length, way.phases)]
    x = x.reshape(x.shape[0], groups, -1, *sizes)
    space = range(3, x.ndim, 2)
    x = jnp.transpose(x, (1, 0, *space, 2, *(axis + 1 for axis in space)))
    return x.reshape(*x.shape[: len(ways) + 2], -1)


def _stretches(y: Array, ways: Sequence[Dealt]) -> Array:
    """Sum the products of each lag over the stretch of each shift.

    Returns:
        Shape (lags, shifts, groups, channels and phases, channels and phases).
    """
    edges = [(way.edge, way.edge) for way in ways]
    wide = jnp.pad(y, [(0, 0), (0, 0), *edges, (0, 0)])
    steps = np.array([way.step for way in ways])
    starts = _lags(ways) * steps + np.array([way.edge for way in ways])

    def of_lag(start: Array) -> Array:
        moved = jax.lax.dynamic_slice(wide, (0, 0, *start, 0), y.shape)
        return _of_pieces(y, moved, ways)

    return jax.lax.map(of_lag, jnp.asarray(starts))


def _of_pieces(y: Array, moved: Array, ways: Sequence[Dealt]) -> Array:
    """Sum the products of two arrays over the stretch of each shift."""
    total = jnp.zeros((), y.dtype)
    letters = "ijklmnop"[: len(ways)]
    inner = "".join(letter + letter.upper() for letter in letters)
    sums = f"gb{inner}f,gb{inner}e->g{letters}fe"
    shifts = "qrstuvwx"[: len(ways)]
    masks = ",".join(map(str.__add__, shifts, letters))
    for runs in itertools.product(*(enumerate(way.pieces) for way in ways)):
        if any(number * size == 0 for _, (_, number, size) in runs):
            continue
        parts = [_pieces(x, [run for _, run in runs]) for x in (y, moved)]
        sum_of_pieces = jnp.einsum(sums, *parts, precision=_HIGHEST)
        chosen = [_columns(way, n) for way, (n, _) in zip(ways, runs, strict=True)]
        total = total + jnp.einsum(
            f"g{letters}fe,{masks}->{shifts}gfe",
            sum_of_pieces,
            *(mask.astype(y.dtype) for mask in chosen),
            precision=_HIGHEST,
        )
    return total.reshape(-1, *total.shape[len(ways) :])


def _columns(way: Dealt, run: int) -> np.ndarray:
    """Return which pieces of a run make up the stretch of each shift."""
    first = way.shifts - 1
    return np.split(way.of_shift, [first, first + 1], axis=1)[run]


def _pieces(x: Array, runs: Sequence[tuple[int, int, int]]) -> Array:
    """Cut runs of pieces out of all axes of space, an axis for pieces before each."""
    for axis, (start, number, size) in enumerate(runs, 2):
        x = jax.lax.slice_in_dim(x, start, start + number * size, axis=axis)
    sizes = [n for _, number, size in runs for n in (number, size)]
    return x.reshape(*x.shape[:2], *sizes, x.shape[-1])


def _crossed(y: Array, along: Array, ways: Sequence[Dealt], channels: int) -> Array:
    """Multiply window entries with what there is one of for each window.

    Returns:
        Shape (groups, channels and window, entries of `along`).
    """
    counts = [way.count for way in ways]
    along = along.reshape(along.shape[0], -1, *counts, along.shape[-1])
    sizes = (*y.shape[:2], *counts, y.shape[-1])
    steps = np.array([way.step for way in ways])
    starts = np.array(list(np.ndindex(*(way.shifts for way in ways)))) * steps
    space = "ijklmnop"[: len(ways)]

    def of_shift(start: Array) -> Array:
        part = jax.lax.dynamic_slice(y, (0, 0, *start, 0), sizes)
        sums = f"gb{space}f,gb{space}o->gfo"
        return jnp.einsum(sums, part, along, precision=_HIGHEST)

    found = jax.lax.map(of_shift, jnp.asarray(starts))
    found = found.reshape(*found.shape[:2], channels, -1, found.shape[-1])
    phase, shift = _flat(ways)
    chosen = jnp.transpose(found[shift, :, :, phase], (1, 2, 0, 3))
    return chosen.reshape(chosen.shape[0], -1, chosen.shape[-1])


def _by_entries(sums: Array, ways: Sequence[Dealt], channels: int) -> Array:
    """Look the sums for all pairs of window entries up.

    Returns:
        Shape (groups, channels and window, channels and window).
    """
    sums = sums.reshape(*sums.shape[:3], channels, -1, *sums.shape[-1:])
    sums = sums.reshape(*sums.shape[:5], channels, -1)
    phase, shift = _flat(ways)
    number, is_back = _lag_of_pair(ways)
    pair = np.broadcast_arrays(phase[:, None], phase[None])
    first, second = (np.where(is_back, *x) for x in (pair[::-1], pair))
    anchor = np.where(is_back, shift[None], shift[:, None])
    found = sums[number, anchor, :, :, first, :, second]
    flags = is_back[..., None, None, None]
    found = jnp.where(flags, jnp.swapaxes(found, -1, -2), found)
    found = jnp.transpose(found, (2, 3, 0, 4, 1))
    return found.reshape(found.shape[0], math.prod(found.shape[1:3]), -1)


def _lags(ways: Sequence[Dealt]) -> np.ndarray:
    """Return the lags of two shifts, one of each lag and its opposite."""
    spans = [np.arange(1 - way.shifts, way.shifts) for way in ways]
    every = np.stack(np.meshgrid(*spans, indexing="ij"), -1).reshape(-1, len(ways))
    return every[len(every) // 2 :]  # the middle one is 0


def _lag_of_pair(ways: Sequence[Dealt]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the lag of two window entries, and if it is the opposite."""
    shifts = np.array([[shift for _, shift in each] for each in _entries(ways)])
    lags = shifts[None] - shifts[:, None]
    spans = [2 * way.shifts - 1 for way in ways]
    offset = np.array([way.shifts - 1 for way in ways])
    number = np.ravel_multi_index(tuple(np.moveaxis(lags + offset, -1, 0)), spans)
    number -= math.prod(spans) // 2
    return np.abs(number), np.asarray(number < 0)


def _entries(ways: Sequence[Dealt]) -> list[tuple[tuple[int, int], ...]]:
    """Return phase and shift on every axis for each entry of a window."""
    return list(itertools.product(*(way.places for way in ways)))


def _flat(ways: Sequence[Dealt]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each entry of a window its phase and shift, each as one number."""
    places = np.array(_entries(ways))  # entries, axes, phase and shift
    sizes = [way.phases for way in ways], [way.shifts for way in ways]
    phase, shift = (
        np.ravel_multi_index(tuple(places[..., n].T), size)
        for n, size in enumerate(sizes)
    )
    return np.asarray(phase), np.asarray(shift)
