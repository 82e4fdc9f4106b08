"""Similarity of the units of a label: Pearson correlation of activations or weights."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jmudsc.lazy import Leaf
from jmudsc.memory import Memory
from jmudsc.moments import merge_moments, Moments, moments_of_centred
from jmudsc.sharding import to_host
from jmudsc.slices import others_on, unit_slices
from jmudsc.spec import PermutationSpec, Site

# One name for all labels: with their own, each would be compiled anew.
_ANY = "units"

# A unit whose deviation is within this many rounding errors of its mean is constant.
_CONSTANT = 16 * np.finfo(np.float32).eps


@jax.jit
def correlation(
    mean: Float[Array, " units"],
    comoment: Float[Array, "units units"],
    count: ArrayLike = 1,
) -> Float[Array, "units units"]:
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
    deviation = jnp.sqrt(jnp.diagonal(variance))
    varies = deviation > _CONSTANT * jnp.abs(mean)
    inverse = jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 0)
    scaled = jnp.clip(variance * jnp.outer(inverse, inverse), -1, 1)
    return (scaled + scaled.T) / 2


def activation_similarity(moments: Moments) -> Float[np.ndarray, "stacked stacked"]:
    """Correlate the activations of the stacked units of all models.

    Pearson correlation over all samples (Li et al. 2016, arXiv:1511.07543, section
    3.1).

    Args:
        moments: of one label, from `collect`.

    Returns:
        Values in [-1, 1]; a unit that never changes has 0 with every unit.
    """
    found = correlation(moments.mean, moments.comoment, np.float32(moments.count))
    return to_host(found)


def weight_similarity(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Leaf]],
    assignment: Mapping[str, np.ndarray],
    label: str,
    *,
    within: bool = True,
    memory: Memory | None = None,
) -> Float[np.ndarray, "stacked stacked"] | None:
    """Correlate the weight vectors of the stacked units of all models.

    A unit's weight vector is the concatenation of its slices at every site of the
    label, incoming and outgoing, norm scales and biases included, running statistics
    left out. Before that, every other axis of those leaves is brought to the merged
    order by the current assignment (Xu et al. 2024, arXiv:2403.01753, section 3.2):
    units of an axis that is summed over are averaged, units of any other are summed.
    That is the reverse of what the merge itself does, makes a difference for zip only,
    and was chosen by measurement (docs/method.md).

    Args:
        spec: the permutation spec.
        models: per model, leaf path -> array.
        assignment: the current one, label -> `int32[models, *parent units, units]`.
        label: the label to compare.
        within: whether to compare units of one model with each other too; if not, they
            have similarity 0. A one-to-one matching does not look at them.
        memory: what is known from earlier calls with these models; the result is the
            same without it.

    Returns:
        Values in [-1, 1]; None if the label is only on running statistics.
    """
    memory = Memory(budget=0) if memory is None else memory
    total: dict[str, Moments] = {}
    for site in spec.labels[label].sites:
        if site.path in spec.statistics:
            continue
        others = others_on(spec, label, site)
        if others is None:
            continue
        state = tuple(assignment[name].tobytes() for name in others)

        def compute(site: Site = site) -> Moments:
            slices = unit_slices(spec, models, assignment, label, site)
            return moments_of_centred([{_ANY: x} for x in slices], within)[_ANY]

        seen = {_ANY: memory.recall((label, site, within), state, compute)}
        total = merge_moments(total, seen) if total else seen
    if not total:
        return None
    return activation_similarity(total[_ANY])
