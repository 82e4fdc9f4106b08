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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Products of so many pairs of numbers, for one label, are taken on an accelerator.
LARGE = 2**33
# Entries that go to the device at once.
CHUNK = 256

# Samples of the units of one model, on the host.
Samples = Float[np.ndarray, "entries *apart units"]


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


def stacked_products(
    samples: Sequence[Samples], large: bool = False
) -> Float[Array | np.ndarray, "*apart stacked stacked"]:
    """Sum the products of every two units of all models.

    Args:
        samples: of the units of every model.
        large: whether to do it on the device.

    Returns:
        Symmetric sums in float32; the units are stacked model by model.
    """
    if large:
        return _in_chunks(samples, _stacked_shape(samples), _add_stacked)
    return _here(np.concatenate(samples, axis=-1))


def pair_products(
    samples: Sequence[Samples], large: bool = False
) -> Float[Array | np.ndarray, "pairs *apart units units"]:
    """Sum the products of units of different models.

    Args:
        samples: of the units of every model.
        large: whether to do it on the device.

    Returns:
        Sums in float32 for every two models i < j, in the order of
        `itertools.combinations`, rows of i, columns of j.
    """
    if large:
        return _in_chunks(samples, _pairs_shape(samples), _add_pairs)
    pairs = itertools.combinations(samples, 2)
    return np.stack([_here(one, other) for one, other in pairs])


def blocks_of(
    samples: Sequence[Float[Array, "samples *apart units"]],
) -> Float[Array, "*apart stacked stacked"]:
    """Multiply block by block: no copy of the samples, and no block twice.

    Args:
        samples: of the units of every model; use under `jit`.

    Returns:
        What `stacked_products` does.
    """
    rows: list[list[jax.Array]] = []
    for i, x in enumerate(samples):
        row = [rows[j][i].mT for j in range(i)]
        rows.append(row + [_there(x, y) for y in samples[i:]])
    return jnp.block(rows)


def _here(x: np.ndarray, y: np.ndarray | None = None) -> np.ndarray:
    """Multiply on the host; with itself if there is no other, to a symmetric result."""
    left = np.moveaxis(x, 0, -1)  # (*apart, units, entries)
    right = np.moveaxis(x if y is None else y, 0, -2)
    return np.matmul(left, right)


def _there(x: jax.Array, y: jax.Array) -> jax.Array:
    how = jax.lax.Precision.HIGHEST
    return jnp.einsum("s...i,s...j->...ij", x, y, precision=how)


def _in_chunks(
    samples: Sequence[np.ndarray],
    shape: tuple[int, ...],
    add: Callable[[jax.Array, np.ndarray], jax.Array],
) -> jax.Array:
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
