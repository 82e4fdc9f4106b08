"""Cross moments: how units vary together, from co-moments to Pearson correlations.

A one-to-one matching never compares two units of one model, so of the co-moments of N
models it needs N(N - 1) / 2 blocks out of N^2: `CrossMoments` holds no others.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jmudsc.matching.moments import Centered, products
from jmudsc.sharding import to_host

# A unit whose standard deviation is within so many rounding errors of its mean is
# constant.
_CONSTANT = 16 * np.finfo(np.float32).eps

# Mean, square and product of `CrossMoments`.
_Sums = tuple[jax.Array, jax.Array, jax.Array]


@jax.jit
def correlation(
    mean: Float[Array, "*apart units"],
    comoment: Float[Array, "*apart units units"],
    count: ArrayLike = 1,
) -> Float[Array, "*apart units units"]:
    """Turn a covariance matrix, or co-moments, into Pearson correlations.

    Args:
        mean: mean of each unit, only used to tell rounding errors from variation.
        comoment: covariance of the units, times `count`.
        count: number of samples.

    Returns:
        Values in [-1, 1], exactly symmetric. A unit that never changes has correlation
        0 with every unit, itself included.
    """
    variance = comoment / jnp.asarray(count, comoment.dtype)
    inverse = inverse_std(mean, jnp.diagonal(variance, axis1=-2, axis2=-1))
    product = inverse[..., :, None] * inverse[..., None, :]
    scaled = jnp.clip(variance * product, -1, 1)
    return (scaled + scaled.mT) / 2


def inverse_std(
    mean: Float[Array, "*units"], variance: Float[Array, "*units"]
) -> Float[Array, "*units"]:
    """Return one over the standard deviation of units, 0 for those that never change.

    Args:
        mean: mean of each unit, only used to tell rounding errors from variation.
        variance: of each unit.
    """
    std = jnp.sqrt(variance)
    varies = std > _CONSTANT * jnp.abs(mean)
    return jnp.where(varies, 1 / jnp.where(varies, std, 1), 0)


@dataclass(frozen=True)
class CrossMoments:
    """Moments of the units of a label over some samples, across models.

    Attributes:
        count: number of samples.
        mean: mean of each unit.
        square: sum over samples of the squared difference of each unit from its mean.
        product: for every two models i < j, in the order of `itertools.combinations`,
            the sum of products of differences from the mean, of units of i and units of
            j. Outer labels that stay in place are axes that lead, as in `Moments`.
    """

    count: int
    mean: Float[Array, "models *apart units"]
    square: Float[Array, "models *apart units"]
    product: Float[Array, "pairs *apart units units"]


def cross_moments(units: Sequence[Centered]) -> CrossMoments:
    """Compute the cross moments of the units of all models.

    Args:
        units: for every model what `centered` returns.

    Returns:
        The moments over these samples.
    """
    sums = _summed([mean for mean, _ in units], [x for _, x in units])
    return CrossMoments(len(units[0][1]), *sums)


def merge_cross_moments(a: CrossMoments, b: CrossMoments) -> CrossMoments:
    """Combine the cross moments of two sets of samples, as `merge_moments` does.

    Args:
        a: over some samples.
        b: of the same units over others.

    Returns:
        The moments over both.
    """
    count = a.count + b.count
    share, weight = np.float32(b.count / count), np.float32(a.count * b.count / count)
    one, other = ((x.mean, x.square, x.product) for x in (a, b))
    return CrossMoments(count, *_merged(one, other, share, weight))


def cross_similarity(
    moments: CrossMoments,
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
        one, other = ((moments.mean[m], moments.square[m]) for m in (i, j))
        count = np.float32(moments.count)
        found[..., i, :, j, :] = to_host(
            _correlated(one, other, moments.product[pair], count)
        )
    return found.reshape(*apart, models * units, models * units)


def _pairs(models: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(models), 2))


@jax.jit
def _summed(means: list[jax.Array], samples: list[jax.Array]) -> _Sums:
    square = jnp.stack([(x * x).sum(axis=0) for x in samples])
    pairs = itertools.combinations(samples, 2)
    return jnp.stack(means), square, jnp.stack([products(x, y) for x, y in pairs])


@jax.jit
def _merged(a: _Sums, b: _Sums, share: jax.Array, weight: jax.Array) -> _Sums:
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
    rows, columns = (inverse_std(mean, square / count) for mean, square in (one, other))
    scale = rows[..., :, None] * columns[..., None, :]
    return jnp.clip(product / count * scale, -1, 1)
