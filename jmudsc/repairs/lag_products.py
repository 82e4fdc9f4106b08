"""Lag products: sums of products of an array with another that is moved on by lags."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

HIGHEST = jax.lax.Precision.HIGHEST
# Products of matrices with so many rows and columns are fast.
WIDE = 256


@dataclass(frozen=True)
class Pair:
    """Two arrays whose products are summed, one of them moved on by each lag.

    Attributes:
        here: shape (groups, pieces, others, positions, features).
        moved: the same, of other positions and features.
        offset: the position there of what goes with the first position here, of lag 0.
        step: number of positions of a lag of 1.
        lags: the lags.
    """

    here: Array
    moved: Array
    offset: int
    step: int
    lags: np.ndarray

    def blocks(self, length: int, most: int) -> tuple[int, int]:
        """Return the size of blocks, in steps, and how many go into a length."""
        widest = max(self.here.shape[-1], self.moved.shape[-1])
        size = max(1, min(WIDE // widest, most))
        return size, length // (size * self.step)


def over_pieces(pair: Pair, run: tuple[int, int, int], mask: np.ndarray) -> Array:
    """Sum products over the pieces of a run, put together to stretches.

    Args:
        pair: of arrays.
        run: the start of the pieces, their number and length.
        mask: shape (stretches, pieces).

    Returns:
        Shape (groups, pieces, lags, stretches, features, features).
    """
    start, number, size = run
    take = lambda x, first: jax.lax.dynamic_slice_in_dim(
        x, first, number * size, axis=3
    ).reshape(*x.shape[:3], number, size, x.shape[-1])
    here = take(pair.here, start)

    def of_lag(first: Array) -> Array:
        there = take(pair.moved, first)
        sums = jnp.einsum("gnrpsf,gnrpse->gnpfe", here, there, precision=HIGHEST)
        chosen = mask.astype(here.dtype)
        return jnp.einsum("gnpfe,yp->gnyfe", sums, chosen, precision=HIGHEST)

    starts = jnp.asarray(pair.offset + start + pair.lags * pair.step)
    return jnp.moveaxis(jax.lax.map(of_lag, starts), 0, 2)


def over_blocks(pair: Pair, start: int, size: int, number: int) -> Array:
    """Sum products over a stretch of positions that is the same for all lags.

    Blocks of positions are multiplied with blocks further on: products of matrices of
    a good size, in which each lag is found on the diagonals.

    Args:
        pair: of arrays.
        start: where the stretch begins.
        size: how many steps a block has.
        number: how many blocks there are.

    Returns:
        Shape (groups, pieces, lags, features, features).
    """
    length = size * pair.step

    def take(x: Array, first: int | Array) -> Array:
        x = jax.lax.dynamic_slice_in_dim(x, first, number * length, axis=3)
        x = x.reshape(*x.shape[:3], number, size, pair.step, x.shape[-1])
        x = jnp.swapaxes(x, 4, 5)
        return x.reshape(*x.shape[:2], -1, size * x.shape[-1])

    here = take(pair.here, start)
    ahead, there = np.divmod(pair.lags[:, None] + np.arange(size), size)
    far = np.arange(ahead.min(), ahead.max() + 1)

    def of_distance(first: Array) -> Array:
        moved = take(pair.moved, first)
        return jnp.einsum("gnrf,gnre->gnfe", here, moved, precision=HIGHEST)

    firsts = jnp.asarray(pair.offset + start + far * length)
    products = jax.lax.map(of_distance, firsts)
    features = (size, -1, size, pair.moved.shape[-1])
    products = products.reshape(*products.shape[:3], *features)
    index = ahead - far[0], np.arange(size)[None], there
    found = products[index[0], :, :, index[1], :, index[2]]
    return jnp.transpose(found.sum(axis=1), (1, 2, 0, 3, 4))
