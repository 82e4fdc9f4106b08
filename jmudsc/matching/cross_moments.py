"""Crossed moments: what tells how alike units of different models are, and no more.

A one-to-one matching never compares two units of one model, so of the co-moments of N
models it needs N(N - 1) / 2 blocks out of N^2.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jmudsc.matching.correlation import inverse_deviation
from jmudsc.matching.moments import products
from jmudsc.sharding import to_host


@dataclass(frozen=True)
class Crossed:
    """Moments of the units of a label over some samples, across models.

    Attributes:
        count: number of samples.
        mean: mean of each unit.
        square: sum over samples of the squared deviation of each unit from its mean.
        product: for every two models i < j, in the order of `itertools.combinations`,
            the sum of products of deviations, of units of i and units of j. Parents
            that stay in place are axes that lead, as in `Moments`.
    """

    count: int
    mean: Float[Array, "models *apart units"]
    square: Float[Array, "models *apart units"]
    product: Float[Array, "pairs *apart units units"]


Deviations = tuple[Float[Array, "*apart units"], Float[Array, "samples *apart units"]]


def crossed_of(units: Sequence[Deviations]) -> Crossed:
    """Compute the crossed moments of the units of all models.

    Args:
        units: for every model what `centred` returns.

    Returns:
        The moments over these samples.
    """
    return Crossed(
        len(units[0][1]), *_crossed([x for x, _ in units], [x for _, x in units])
    )


def merge_crossed(a: Crossed, b: Crossed) -> Crossed:
    """Combine the crossed moments of two sets of samples, as `merge_moments` does.

    Args:
        a: over some samples.
        b: of the same units over others.

    Returns:
        The moments over both.
    """
    count = a.count + b.count
    share, weight = np.float32(b.count / count), np.float32(a.count * b.count / count)
    parts = [(x.mean, x.square, x.product) for x in (a, b)]
    return Crossed(count, *_merged(*parts, share, weight))


def crossed_similarity(
    moments: Crossed,
) -> Float[np.ndarray, "*apart stacked stacked"]:
    """Correlate units of different models.

    Args:
        moments: of one label.

    Returns:
        Pearson correlations of the stacked units, as `activation_similarity` gives
        them, in the blocks above the diagonal ones; 0 elsewhere.
    """
    models, *apart, units = moments.mean.shape
    found = np.zeros((*apart, models, units, models, units), np.float32)
    for pair, (i, j) in enumerate(_pairs(models)):
        parts = [(moments.mean[m], moments.square[m]) for m in (i, j)]
        block = _correlated(*parts, moments.product[pair], np.float32(moments.count))
        found[..., i, :, j, :] = to_host(block)
    return found.reshape(*apart, models * units, models * units)


def _pairs(models: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(models), 2))


@jax.jit
def _crossed(
    means: list[jax.Array], deviations: list[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    square = jnp.stack([(x * x).sum(axis=0) for x in deviations])
    pairs = itertools.combinations(deviations, 2)
    return jnp.stack(means), square, jnp.stack([products(x, y) for x, y in pairs])


@jax.jit
def _merged(
    a: tuple[jax.Array, jax.Array, jax.Array],
    b: tuple[jax.Array, jax.Array, jax.Array],
    share: jax.Array,
    weight: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    (mean, square, product), (other, others, crossed) = a, b
    step = other - mean
    outer = jnp.stack(
        [step[i][..., :, None] * step[j][..., None, :] for i, j in _pairs(len(step))]
    )
    return (
        mean + share * step,
        square + others + weight * step * step,
        product + crossed + weight * outer,
    )


@jax.jit
def _correlated(
    one: tuple[jax.Array, jax.Array],
    other: tuple[jax.Array, jax.Array],
    product: jax.Array,
    count: jax.Array,
) -> jax.Array:
    rows, columns = (
        inverse_deviation(mean, square / count) for mean, square in (one, other)
    )
    scale = rows[..., :, None] * columns[..., None, :]
    return jnp.clip(product / count * scale, -1, 1)
