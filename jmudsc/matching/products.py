"""Products: sums over entries of the products of units, taken where they cost least.

A program takes seconds to compile on an accelerator, and small arrays take longer to
get there than to multiply. So small products are taken on the host, and large ones on
an accelerator, in chunks of entries that all have one shape: one program serves all
leaves and layers that have as many units. Where there is no accelerator the host takes
them all.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.linalg import get_blas_funcs

# Products of so many pairs of numbers, for one label, are taken on an accelerator.
LARGE = 2**33
# Entries that go to the device at once.
CHUNK = 256

_syrk, _gemm = get_blas_funcs(("syrk", "gemm"), dtype=np.float32)

# Samples of the units of one model, on the host.
Samples = Float[np.ndarray, "entries *apart units"]
# Sums that are added to; none yet.
Total = Any


def are_large(models: int, units: int, numbers: int) -> bool:
    """Whether the products of a label's units belong on the device, an accelerator.

    Args:
        models: how many models.
        units: how many units of each are compared.
        numbers: how many numbers the leaves of one model have that they are read from.
    """
    return has_accelerator() and models**2 * units * numbers >= LARGE


def has_accelerator() -> bool:
    """Whether arrays are on anything but the host."""
    return jax.default_backend() != "cpu"


def add_stacked(
    total: Total, samples: Sequence[Samples], large: bool = False, times: float = 1.0
) -> Total:
    """Add the products of every two units of all models, summed over entries.

    Args:
        total: what they are added to, (*apart, stacked, stacked), which is used up; of
            one on the host the lower triangle is all that is right until `mirror`. None
            for zeros.
        samples: of the units of every model.
        large: whether to do it on the device.
        times: what the products are multiplied by; on the host.

    Returns:
        The sums, in float32; the units are stacked model by model.
    """
    if large:
        return _in_chunks(total, samples, _stacked_shape(samples), _add_stacked)
    x = np.concatenate(samples, axis=-1)
    if total is None:
        total = np.zeros((*x.shape[1:], x.shape[-1]), np.float32)
    for apart in np.ndindex(total.shape[:-2]):
        # To BLAS, arrays whose rows are contiguous are transposed.
        _syrk(times, x[:, *apart].T, 1.0, total[apart].T, overwrite_c=True)
    return total


def add_pairs(
    total: Total, samples: Sequence[Samples], large: bool = False, times: float = 1.0
) -> Total:
    """Add the products of units of different models, summed over entries.

    Args:
        total: what they are added to, which is used up; None for zeros.
        samples: of the units of every model.
        large: whether to do it on the device.
        times: what the products are multiplied by; on the host.

    Returns:
        Sums in float32, (pairs, *apart, units, units), for every two models i < j, in
        the order of `itertools.combinations`, rows of i, columns of j.
    """
    if large:
        return _in_chunks(total, samples, _pairs_shape(samples), _add_pairs)
    if total is None:
        total = np.zeros(_pairs_shape(samples), np.float32)
    for pair, (one, other) in enumerate(itertools.combinations(samples, 2)):
        for apart in np.ndindex(total.shape[1:-2]):
            left, right, onto = one[:, *apart], other[:, *apart], total[pair][apart]
            _gemm(times, right.T, left.T, 1.0, onto.T, trans_b=True, overwrite_c=True)
    return total


def plus(total: Total, more: Array | np.ndarray) -> Total:
    """Add sums to sums where these are.

    Args:
        total: what they are added to, which is used up; None for zeros.
        more: what is added, which stays as it is.
    """
    if isinstance(more, np.ndarray):
        if total is None:
            return more.copy()
        total += more
        return total
    return _plus(jnp.zeros_like(more) if total is None else total, more)


def mirror(total: Total, tile: int = 64) -> Total:
    """Copy the lower triangle of sums on the host to the upper one, in place.

    Args:
        total: from `add_stacked`; of those on the device both triangles are right.
        tile: rows and columns that are copied at once, so that they stay in a cache.
    """
    if not isinstance(total, np.ndarray):
        return total
    size, above = total.shape[-1], np.triu_indices(tile, 1)
    for start in range(0, size, tile):
        rows = slice(start, start + tile)
        corner = total[..., rows, rows]
        i, j = above if corner.shape[-1] == tile else np.triu_indices(size - start, 1)
        corner[..., i, j] = corner[..., j, i]
        for left in range(0, start, tile):
            columns = slice(left, left + tile)
            total[..., columns, rows] = total[..., rows, columns].swapaxes(-1, -2)
    return total


def blocks_of(
    samples: Sequence[Float[Array, "samples *apart units"]],
) -> Float[Array, "*apart stacked stacked"]:
    """Multiply block by block: no copy of the samples, and no block twice.

    Args:
        samples: of the units of every model; use under `jit`.

    Returns:
        What `add_stacked` adds.
    """
    rows: list[list[jax.Array]] = []
    for i, x in enumerate(samples):
        row = [rows[j][i].mT for j in range(i)]
        rows.append(row + [_there(x, y) for y in samples[i:]])
    return jnp.block(rows)


def _there(x: jax.Array, y: jax.Array) -> jax.Array:
    how = jax.lax.Precision.HIGHEST
    return jnp.einsum("s...i,s...j->...ij", x, y, precision=how)


def _in_chunks(
    total: Total,
    samples: Sequence[np.ndarray],
    shape: tuple[int, ...],
    add: Callable[[jax.Array, np.ndarray], jax.Array],
) -> jax.Array:
    if total is None:
        total = jnp.zeros(shape, np.float32)
    for chunk in _chunks(samples):
        total = add(total, chunk)
    return total


def _chunks(samples: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield entries of all models, (models, CHUNK, ...); the last are filled with 0."""
    entries, *rest = samples[0].shape
    for start in range(0, entries, CHUNK):
        chunk = np.zeros((len(samples), CHUNK, *rest), np.float32)
        for model, x in enumerate(samples):
            part = x[start : start + CHUNK]
            chunk[model, : len(part)] = part
        yield chunk


def _stacked_shape(samples: Sequence[np.ndarray]) -> tuple[int, ...]:
    _, *apart, units = samples[0].shape
    return *apart, len(samples) * units, len(samples) * units


def _pairs_shape(samples: Sequence[np.ndarray]) -> tuple[int, ...]:
    _, *apart, units = samples[0].shape
    return math.comb(len(samples), 2), *apart, units, units


@functools.partial(jax.jit, donate_argnums=0)
def _add_stacked(total: jax.Array, chunk: jax.Array) -> jax.Array:
    return total + blocks_of(list(chunk))


@functools.partial(jax.jit, donate_argnums=0)
def _add_pairs(total: jax.Array, chunk: jax.Array) -> jax.Array:
    pairs = itertools.combinations(chunk, 2)
    return total + jnp.stack([_there(one, other) for one, other in pairs])


_plus = jax.jit(jnp.add, donate_argnums=0)
