"""Cross moments: how units vary together, from co-moments to Pearson correlations.

A one-to-one matching never compares two units of one model, so of the co-moments of N
models it needs N(N - 1) / 2 blocks out of N^2: `CrossMoments` holds no others.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jmudsc.matching.moments import Parts, steps_between
from jmudsc.matching.products import add_pairs, plus
from jmudsc.reordering.blocks import library_of, Values
from jmudsc.sharding import to_host

# A unit whose standard deviation is within so many rounding errors of its mean is
# constant.
_CONSTANT = 16 * np.finfo(np.float32).eps

# Rows of a matrix on the host that are worked on at once, so that they stay in a cache.
_TILE = 256


def correlation(
    mean: Float[Array | np.ndarray, "*apart units"],
    comoment: Float[Array | np.ndarray, "*apart units units"],
    count: ArrayLike = 1,
) -> Float[Array | np.ndarray, "*apart units units"]:
    """Turn a covariance matrix, or co-moments, into Pearson correlations.

    Args:
        mean: mean of each unit, only used to tell rounding errors from variation.
        comoment: covariance of the units, times `count`.
        count: number of samples.

    Returns:
        Values in [-1, 1], exactly symmetric. A unit that never changes has correlation
        0 with every unit, itself included.
    """
    library = library_of(comoment)
    size = library.asarray(count, comoment.dtype)
    variance = library.diagonal(comoment, axis1=-2, axis2=-1) / size
    inverse = inverse_std(mean, variance)

    def scaled(rows: slice, columns: slice) -> Any:
        both = comoment[..., rows, columns] + comoment[..., columns, rows].mT
        both *= library.asarray(0.5, comoment.dtype) / size
        both *= inverse[..., rows, None] * inverse[..., None, columns]
        return library.clip(both, -1, 1)

    everything = slice(None)
    if library is not np:
        return scaled(everything, everything)
    found = np.empty_like(comoment)
    tiles = [slice(at, at + _TILE) for at in range(0, comoment.shape[-1], _TILE)]
    for rows, columns in itertools.combinations_with_replacement(tiles, 2):
        tile = scaled(rows, columns)
        found[..., rows, columns] = tile
        found[..., columns, rows] = tile.mT
    return found


correlation_there = jax.jit(correlation)


def inverse_std(
    mean: Float[Array | np.ndarray, "*units"],
    variance: Float[Array | np.ndarray, "*units"],
) -> Float[Array | np.ndarray, "*units"]:
    """Return one over the standard deviation of units, 0 for those that never change.

    Args:
        mean: mean of each unit, only used to tell rounding errors from variation.
        variance: of each unit.
    """
    library = library_of(variance)
    std = library.sqrt(variance)
    varies = std > np.float32(_CONSTANT) * abs(mean)
    zero, one = np.zeros((), std.dtype), np.ones((), std.dtype)
    return library.where(varies, one / library.where(varies, std, one), zero)


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
    mean: Float[Array | np.ndarray, "models *apart units"]
    square: Float[Array | np.ndarray, "models *apart units"]
    product: Float[Array | np.ndarray, "pairs *apart units units"]


def cross_moments_over(
    models: int,
    parts: Parts = (),
    known: Sequence[CrossMoments] = (),
    large: bool = False,
) -> CrossMoments:
    """Compute the cross moments of units over several sets of samples.

    Exact like `moments_over`.

    Args:
        models: how many.
        parts: sets of samples, for every model what `centered` returns, on the host.
        known: moments over other sets.
        large: whether to take products on the device (see `products`).

    Returns:
        The moments; on the host unless they are large.
    """
    total: Any = None
    seen = [(each.count, np.asarray(each.mean)) for each in known]
    squares = [each.square.astype(float) for each in known]
    for part in parts:
        means, samples = zip(*part, strict=True)
        seen.append((len(samples[0]), np.stack(means)))
        squares.append(np.stack([(x * x).sum(axis=0, dtype=float) for x in samples]))
        total = jax.block_until_ready(add_pairs(total, samples, large))
    if len(seen) == 1 and known:
        return known[0]
    for each in known:
        total = plus(total, each.product)
    count, mean, steps = steps_between(seen)
    if len(seen) > 1:
        of_models = [steps[:, model] for model in range(models)]
        total = add_pairs(total, of_models, large)
        squares.append((steps.astype(float) ** 2).sum(axis=0))
    return CrossMoments(count, mean, np.sum(squares, axis=0).astype(np.float32), total)


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
    is_here = isinstance(moments.product, np.ndarray)
    correlate = _correlated if is_here else _correlated_there
    parts = moments.mean, moments.square, moments.product
    correlations = to_host(correlate(*parts, np.float32(moments.count)))
    for pair, (i, j) in enumerate(_pairs(models)):
        found[..., i, :, j, :] = correlations[pair]
    return found.reshape(*apart, models * units, models * units)


def _pairs(models: int) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(models), 2))


def _correlated(mean: Values, square: Values, product: Values, count: Any) -> Values:
    library = library_of(product)
    inverse = inverse_std(mean, square / count)
    scale = library.stack(
        [
            inverse[i][..., :, None] * inverse[j][..., None, :]
            for i, j in _pairs(len(mean))
        ]
    )
    return library.clip(product / count * scale, -1, 1)


_correlated_there = jax.jit(_correlated)
