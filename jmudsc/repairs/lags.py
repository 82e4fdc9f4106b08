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
from jmudsc.repairs.lag_products import HIGHEST, over_blocks, over_pieces, Pair, WIDE

# So many products must be saved to be worth a function that takes longer to compile.
_WORTH = 2**30


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
    def runs(self) -> list[tuple[int, int, int]]:
        """Start of each run of pieces of one length, their number, and that length."""
        ends = self.shifts - 1, self.step
        return [(0, *ends), (self.edge, 1, self.count - self.edge), (self.count, *ends)]

    @property
    def of_shift(self) -> list[Float[np.ndarray, "shifts pieces"]]:
        """Which pieces of each run make up the stretch of each shift."""
        first = np.arange(self.shifts)[:, None]
        piece = np.arange(2 * self.shifts - 1)[None]
        is_in = (piece >= first) & (piece < first + self.shifts)
        cuts = self.shifts - 1, self.shifts
        return np.split(is_in.astype(np.float32), cuts, axis=1)


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
    length = math.prod(way.length for way in ways)
    summed = _blocks_of_lags(ways, phases) * length * phases**2
    products = summed + shifts * positions * phases * made
    return 2 * products < copied and copied - products > _WORTH


def _blocks_of_lags(ways: Sequence[Dealt], phases: int) -> int:
    """Count the lags whose products are taken, those taken besides included."""
    *outer, last = ways
    outer_lags = (math.prod(2 * way.shifts - 1 for way in outer) + 1) // 2
    block = max(1, min(WIDE // phases, last.shifts))
    along = (1 if outer else 0) * (last.shifts - 1) + last.shifts
    return outer_lags * (along + 2 * block - 2)


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
    outer = ways[:-1]
    cut = (*y.shape[:-2], *wide.shape[-2:])
    starts = [
        [
            (lag + way.shifts - 1) * way.step
            for lag, way in zip(lags, outer, strict=True)
        ]
        for lags in _outer_lags(ways)
    ]

    def of_lag(start: Array) -> Array:
        moved = jax.lax.dynamic_slice(wide, (0, 0, *start, 0, 0), cut)
        return _of_outer_lag(y, moved, ways)

    if not outer:
        sums = of_lag(jnp.zeros(0, jnp.int32))[None]
    else:
        sums = jax.lax.map(of_lag, jnp.asarray(starts))
    return sums.reshape(-1, math.prod(w.shifts for w in ways), *sums.shape[-3:])


def _of_outer_lag(y: Array, moved: Array, ways: Sequence[Dealt]) -> Array:
    """Sum products for all lags along the last axis and one along all others.

    Returns:
        Shape (lags, *shifts, groups, channels and phases, channels and phases).
    """
    *outer, last = ways
    total = jnp.zeros((), y.dtype)
    pieces, shifts = "ijklmnop"[: len(outer)], "qrstuvwx"[: len(outer)]
    masks = "".join(
        f",{shift}{piece}" for shift, piece in zip(shifts, pieces, strict=True)
    )
    for runs in itertools.product(*(range(3) for _ in outer)):
        chosen = [way.runs[run] for way, run in zip(outer, runs, strict=True)]
        if any(number * size == 0 for _, number, size in chosen):
            continue
        sums = _along_last(_cut(y, chosen), _cut(moved, chosen), last, len(outer) == 0)
        numbers = [number for _, number, _ in chosen]
        sums = sums.reshape(sums.shape[0], *numbers, *sums.shape[2:])
        of_shift = [way.of_shift[run] for way, run in zip(outer, runs, strict=True)]
        total = total + jnp.einsum(
            f"g{pieces}zyfe{masks}->z{shifts}ygfe",
            sums,
            *(mask.astype(y.dtype) for mask in of_shift),
            precision=HIGHEST,
        )
    return total


def _cut(x: Array, runs: Sequence[tuple[int, int, int]]) -> Array:
    """Cut runs of pieces out of all axes of space but the last.

    Returns:
        Shape (groups, pieces, batch and positions of a piece, last axis, features).
    """
    for axis, (start, number, size) in enumerate(runs, 2):
        x = jax.lax.slice_in_dim(x, start, start + number * size, axis=axis)
    sizes = [n for _, number, size in runs for n in (number, size)]
    x = x.reshape(*x.shape[:2], *sizes, *x.shape[-2:])
    pieces = range(2, 2 + len(sizes), 2)
    order = (0, *pieces, 1, *(n + 1 for n in pieces), x.ndim - 2, x.ndim - 1)
    count = math.prod(number for _, number, _ in runs)
    return jnp.transpose(x, order).reshape(x.shape[0], count, -1, *x.shape[-2:])


def _along_last(y: Array, moved: Array, way: Dealt, is_only: bool) -> Array:
    """Sum products for all lags along the last axis over the stretch of each shift.

    Args:
        y: from `_cut`.
        moved: the same of the other factor, wider by an edge on both sides.
        way: how the last axis is dealt out.
        is_only: whether it is the only axis.

    Returns:
        Shape (groups, pieces, lags, shifts, features, features).
    """
    pair = Pair(y, moved, way.edge, way.step, _last_lags(way, is_only))
    size, number = pair.blocks(way.count - way.edge, way.shifts)
    end = way.edge + size * number * way.step
    left, _, right = way.runs
    rest = end, 1, way.count - end
    total = jnp.zeros((), y.dtype)
    for run, mask in zip((left, rest, right), way.of_shift, strict=True):
        if run[1] * run[2]:
            total = total + over_pieces(pair, run, mask)
    if number:
        total = total + over_blocks(pair, way.edge, size, number)[:, :, :, None]
    return total


def _crossed(y: Array, along: Array, ways: Sequence[Dealt], channels: int) -> Array:
    """Multiply window entries with what there is one of for each window.

    Returns:
        Shape (groups, channels and window, entries of `along`).
    """
    *outer, last = ways
    counts = [way.count for way in ways]
    along = along.reshape(along.shape[0], -1, *counts, along.shape[-1])
    whole = [(0, 1, way.count) for way in outer]
    here, lags = _cut(along, whole), np.arange(last.shifts)
    room = min(WIDE, last.shifts) * last.step  # blocks may reach beyond the end
    y = jnp.pad(y, [(0, room * (axis == y.ndim - 2)) for axis in range(y.ndim)])
    sizes = (*y.shape[:2], *(way.count for way in outer), *y.shape[-2:])
    steps = np.array([way.step for way in outer], int)
    places = np.array(list(np.ndindex(*(way.shifts for way in outer))), int)

    def of_shift(start: Array) -> Array:
        part = jax.lax.dynamic_slice(y, (0, 0, *start, 0, 0), sizes)
        pair = Pair(here, _cut(part, whole), 0, last.step, lags)
        size, number = pair.blocks(last.count, last.shifts)
        end = size * number * last.step
        total = jnp.zeros((), y.dtype)
        if end < last.count:
            rest = end, 1, last.count - end
            total = total + over_pieces(pair, rest, np.ones((1, 1)))[:, :, :, 0]
        if number:
            total = total + over_blocks(pair, 0, size, number)
        return jnp.transpose(total[:, 0], (1, 0, 3, 2))

    if outer:
        found = jax.lax.map(of_shift, jnp.asarray(places * steps))
    else:
        found = of_shift(jnp.zeros(0, jnp.int32))
    phases = math.prod(way.phases for way in ways)
    found = found.reshape(-1, y.shape[0], channels, phases, along.shape[-1])
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


def _outer_lags(ways: Sequence[Dealt]) -> np.ndarray:
    """Return the lags along all axes but the last, one of each and its opposite."""
    spans = [np.arange(1 - way.shifts, way.shifts) for way in ways[:-1]]
    every = np.array(list(itertools.product(*spans)), int)
    return every[len(every) // 2 :]  # the middle one is 0


def _last_lags(way: Dealt, is_only: bool) -> np.ndarray:
    """Return the lags along the last axis; of an only axis those that lead on."""
    return np.arange(0 if is_only else 1 - way.shifts, way.shifts)


def _lag_of_pair(ways: Sequence[Dealt]) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of the lag of two window entries, and if it is the opposite."""
    shifts = np.array([[shift for _, shift in each] for each in _entries(ways)])
    lags = shifts[None] - shifts[:, None]
    *outer, last = ways
    if not outer:
        return np.abs(lags[..., 0]), np.asarray(lags[..., 0] < 0)
    spans = [2 * way.shifts - 1 for way in outer]
    offset = np.array([way.shifts - 1 for way in outer])
    place = np.moveaxis(lags[..., :-1] + offset, -1, 0)
    number = np.ravel_multi_index(tuple(place), spans) - math.prod(spans) // 2
    is_back = np.asarray(number < 0)
    along = np.where(is_back, -lags[..., -1], lags[..., -1])
    count = 2 * last.shifts - 1
    return np.abs(number) * count + along + last.shifts - 1, is_back


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
