"""Moments: means and co-moments of units, exact however those of batches are merged."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jmudsc.lazy import LazyArray, present
from jmudsc.matching.products import add_stacked, mirror, plus
from jmudsc.reordering.blocks import library_of, Values

# The mean of each unit of one model, and the samples without it.
Centered = tuple[
    Float[Array | np.ndarray, "*apart units"],
    Float[Array | np.ndarray, "samples *apart units"],
]
# Sets of samples, of any numbers, for every model what `Centered` says.
Parts = Iterable[Sequence[tuple[Any, Any]]]
# The mean and the co-moment of `Moments`.
Sums = tuple[
    Float[Array | np.ndarray, "*apart stacked"],
    Float[Array | np.ndarray, "*apart stacked stacked"],
]


@dataclass(frozen=True)
class Moments:
    """Mean and co-moment of the stacked units of all models, over some samples.

    The units are stacked model by model; those of a nested label run over the
    units of its outer labels, outermost first, and then over its own. Outer labels that
    stay in place, such as a stack of layers, are axes that lead: what is nested in
    different units of theirs is not compared (see `PermutationSpec.compared_shape`).

    Attributes:
        count: number of samples.
        mean: mean of each unit.
        comoment: sum over samples of the outer product of differences from the mean;
            lazy where it lies on disk (see `MomentStore`).
    """

    count: int
    mean: Float[Array | np.ndarray, "*apart stacked"]
    comoment: Float[Array | np.ndarray | LazyArray, "*apart stacked stacked"]


def moments_over(
    models: int,
    parts: Parts = (),
    known: Sequence[Moments] = (),
    large: bool = False,
) -> Moments:
    """Compute the moments of the units of all models over several sets of samples.

    Exact however large the means are beside the standard deviations, like
    `merge_moments`: products are taken of samples without the mean of their set, and
    the means of the sets, without that of all, are a few samples more.

    Args:
        models: how many.
        parts: sets of samples, for every model what `centered` returns, on the host.
        known: moments over other sets.
        large: whether to take products on the device (see `products`).

    Returns:
        The moments of the stacked units; on the host unless they are large.
    """
    total: Any = None
    seen = [(each.count, np.asarray(each.mean)) for each in known]
    for part in parts:
        means, samples = zip(*part, strict=True)
        seen.append((len(samples[0]), np.concatenate(means, axis=-1)))
        total = jax.block_until_ready(add_stacked(total, samples, large))
    if len(seen) == 1 and known:
        return known[0]
    for each in known:
        total = plus(total, present(each.comoment))
    count, mean, steps = steps_between(seen)
    if len(seen) > 1:
        total = add_stacked(total, np.split(steps, models, axis=-1), large)
    return Moments(count, mean, mirror(total))


def steps_between(
    seen: Sequence[tuple[int, np.ndarray]],
) -> tuple[int, np.ndarray, np.ndarray]:
    """Compute the mean over several sets of samples, and how far theirs are from it.

    Args:
        seen: of each set the number of samples, and the mean of each unit.

    Returns:
        The number of all samples, the mean over them in float32, and of each set the
        difference of its mean times the square root of its number of samples: their
        products are what co-moments within the sets lack (Chan, Golub and LeVeque 1979,
        eq. 2.1).
    """
    counts = np.array([count for count, _ in seen], float)
    means = np.stack([mean for _, mean in seen]).astype(float)
    mean = np.tensordot(counts / counts.sum(), means, 1)
    steps = (means - mean) * np.sqrt(counts).reshape(-1, *(1,) * mean.ndim)
    return int(counts.sum()), mean.astype(np.float32), steps.astype(np.float32)


def step_shares(before: int, more: int) -> tuple[np.float32, np.float32]:
    """Return how much the mean and the co-moment move for each step of the mean.

    Args:
        before: number of samples.
        more: how many are added.
    """
    count = before + more
    return np.float32(more / count), np.float32(before * more / count)


def centered(
    samples: Float[Array | np.ndarray, "samples *apart units"],
) -> Centered:
    """Take the mean from samples, of numpy or of JAX.

    Args:
        samples: of the units of one model.

    Returns:
        The mean of each unit, and the samples without it.
    """
    if isinstance(samples, np.ndarray):  # where sums are not taken in pairs
        mean = samples.mean(axis=0, dtype=np.float64).astype(samples.dtype)
    else:
        mean = samples.mean(axis=0)
    return mean, samples - mean[None]


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Combine the moments of two sets of samples.

    The pairwise update of Chan, Golub and LeVeque (Updating formulae and a pairwise
    algorithm for computing sample variances, 1979, eq. 2.1): exact however large the
    mean is beside the standard deviation.

    Args:
        a: moments of the units of a label.
        b: those of the same units over other samples.

    Returns:
        The moments over both; on the host if both are.
    """
    is_here = isinstance(a.comoment, np.ndarray) and isinstance(b.comoment, np.ndarray)
    merge = merged_sums if is_here else _merged_there
    parts = (a.mean, present(a.comoment)), (b.mean, present(b.comoment))
    return Moments(a.count + b.count, *merge(*parts, step_shares(a.count, b.count)))


def real_samples(samples: Values) -> Any:
    """Take complex samples as twice as many real ones."""
    if jnp.iscomplexobj(samples):
        return library_of(samples).concatenate([samples.real, samples.imag])
    return samples.astype(np.float32, copy=False)


def merged_sums(a: Sums, b: Sums, shares: tuple[Any, Any]) -> Sums:
    """Combine two sums as `merge_moments` does.

    Args:
        a: over some samples.
        b: over others.
        shares: from `step_shares`.
    """
    (mean_a, comoment_a), (mean_b, comoment_b), (share, weight) = a, b, shares
    step = mean_b - mean_a
    comoment = comoment_a + comoment_b
    comoment += weight * (step[..., :, None] * step[..., None, :])
    return mean_a + share * step, comoment


_merged_there = jax.jit(merged_sums)
