"""Machine speed: how fast this machine is just now, by a few short runs."""

import functools
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmudsc.matching.assignment import align, zip_units

_MATRIX, _UNITS, _STREAM = 768, 256, 2**22


@dataclass(frozen=True)
class Rates:
    """How fast a machine is.

    Attributes:
        flops: operations of a matrix product in a second, float32 at full precision.
        moved: bytes that the device reads and writes in a second.
        digested: bytes of which it takes the SHA-256 in a second.
        align: seconds to align two models, per square of their units.
        zipped: seconds to zip, per square of the units of all models.
        program: seconds to compile a small program.
    """

    flops: float
    moved: float
    digested: float
    align: float
    zipped: float
    program: float


def measure_rates() -> Rates:
    """Measure how fast this machine is, in about a second.

    Other jobs on it count, and so do its other cores. The runs are small: what is too
    large for its caches may be slower.

    Returns:
        The rates.
    """
    matrix, stream = jnp.ones((_MATRIX, _MATRIX)), jnp.ones(_STREAM)
    noise = np.random.default_rng(0).normal(size=(2 * _UNITS, 2 * _UNITS))
    similarity = np.tanh(noise + noise.T).astype(np.float32)
    data = bytes(2**22)
    order = jnp.arange(_MATRIX)
    start = time.perf_counter()
    jax.jit(functools.partial(_sorted_gram)).lower(matrix, order).compile()
    program = time.perf_counter() - start
    product = _seconds(lambda: _product(matrix, matrix).block_until_ready())
    pass_over = _seconds(lambda: _one_more(stream).block_until_ready())
    return Rates(
        flops=2 * _MATRIX**3 / product,
        moved=2 * stream.nbytes / pass_over,
        digested=len(data) / _seconds(lambda: hashlib.sha256(data).digest()),
        align=_seconds(lambda: align(similarity, 2)) / _UNITS**2,
        zipped=_seconds(lambda: zip_units(similarity, 2)) / (2 * _UNITS) ** 2,
        program=program,
    )


def _seconds(run: Callable[[], object]) -> float:
    run()  # compiles, and warms up
    start = time.perf_counter()
    for _ in range(3):
        run()
    return (time.perf_counter() - start) / 3


@jax.jit
def _product(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x.T, y, precision=jax.lax.Precision.HIGHEST)


def _sorted_gram(x: jax.Array, order: jax.Array) -> jax.Array:
    """Compute something of the kind and size that merging compiles many of."""
    rows, columns = x[order], jnp.take_along_axis(x, order[None], axis=1)
    mean = jnp.where(rows == columns, rows, (rows + columns) / 2)
    x = jnp.concatenate([x, mean]).astype(jnp.float32)
    return _product(x - x.mean(axis=0)[None], x)


@jax.jit
def _one_more(x: jax.Array) -> jax.Array:
    return x + 1
