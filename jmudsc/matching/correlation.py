"""Correlation: from means and co-moments to Pearson correlations of units."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

# A unit whose deviation is within this many rounding errors of its mean is constant.
_CONSTANT = 16 * np.finfo(np.float32).eps


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
    inverse = inverse_deviation(mean, jnp.diagonal(variance, axis1=-2, axis2=-1))
    product = inverse[..., :, None] * inverse[..., None, :]
    scaled = jnp.clip(variance * product, -1, 1)
    return (scaled + scaled.mT) / 2


def inverse_deviation(
    mean: Float[Array, "*units"], variance: Float[Array, "*units"]
) -> Float[Array, "*units"]:
    """Return one over the deviation of units, 0 for those that never change.

    Args:
        mean: mean of each unit, only used to tell rounding errors from variation.
        variance: of each unit.
    """
    deviation = jnp.sqrt(variance)
    varies = deviation > _CONSTANT * jnp.abs(mean)
    return jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 0)
