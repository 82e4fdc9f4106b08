"""Similarity of the units of a label: Pearson correlation of activations or weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jmudsc.lazy import LazyArray, Leaf, present
from jmudsc.matching.cross_moments import (
    correlation,
    correlation_there,
    cross_moments,
    cross_similarity,
    merge_cross_moments,
)
from jmudsc.matching.moment_cache import MomentCache
from jmudsc.matching.moments import merge_moments, Moments, moments_of_centered
from jmudsc.matching.products import are_large
from jmudsc.matching.weight_vectors import others_on, unit_slices
from jmudsc.sharding import to_host
from jmudsc.spec.permutation_spec import PermutationSpec, Site

# Of matrices that have more entries, correlations are computed where they are.
_FEW = 2**22


def activation_similarity(
    moments: Moments,
) -> Float[np.ndarray, "*apart stacked stacked"]:
    """Correlate the activations of the stacked units of all models.

    Pearson correlation over all samples (Li et al. 2016, arXiv:1511.07543, section
    3.1).

    Args:
        moments: of one label, from `collect`, on disk or not.

    Returns:
        Values in [-1, 1]; a unit that never changes has 0 with every unit.
    """
    mean, count = moments.mean, np.float32(moments.count)
    comoment = present(moments.comoment)  # of a lazy one what it was when it was stored
    if comoment.size > _FEW and not isinstance(moments.comoment, np.ndarray):
        return to_host(correlation_there(mean, comoment, count))
    return np.asarray(correlation(to_host(mean), to_host(comoment), count))


def weight_similarity(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Leaf]],
    assignment: Mapping[str, np.ndarray],
    label: str,
    *,
    within: bool = True,
    cache: MomentCache | None = None,
) -> Float[np.ndarray, "*apart stacked stacked"] | None:
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
        assignment: the current one, label -> `int32[models, *outer units, units]`.
        label: the label to compare.
        within: whether to compare units of one model with each other too; if not, the
            blocks above the diagonal ones are all that is not 0. A one-to-one matching
            does not look at others.
        cache: what is known from earlier calls with these models; the result is the
            same without it.

    Returns:
        Values in [-1, 1]; None if the label is only on leaves that are no
        evidence: running statistics, and leaves that move like others.
    """
    cache = MomentCache(budget=0) if cache is None else cache
    of, join, correlate = _comparison(within)
    large = _are_large(spec, label, len(models))
    seen: list[Any] = []
    for site in spec.labels[label].sites:
        is_empty = not all(axis.size for axis in spec.axes[site.path])
        if is_empty or not spec.is_evidence(site.path):
            continue
        others = others_on(spec, label, site)
        if others is None:
            continue
        state = tuple(assignment[name].tobytes() for name in others)

        def compute(site: Site = site) -> Any:
            found = of(unit_slices(spec, models, assignment, label, site), large)
            if isinstance(models[0][site.path], LazyArray):
                # Or leaves are read faster than their products are taken, and pile up.
                jax.block_until_ready(list(vars(found).values()))
            return found

        found = cache.recall((label, site, within), state, compute)
        seen = [join(seen[0], found) if seen else found]
    return correlate(seen[0]) if seen else None


def _comparison(
    within: bool,
) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., np.ndarray]]:
    """Return how moments are computed, combined, and turned into similarities."""
    if not within:
        return cross_moments, merge_cross_moments, cross_similarity
    return moments_of_centered, merge_moments, activation_similarity


def _are_large(spec: PermutationSpec, label: str, models: int) -> bool:
    """Whether products of a label's weights are large, which is so at all its sites."""
    paths = {site.path for site in spec.labels[label].sites}
    numbers = sum(math.prod(axis.size for axis in spec.axes[path]) for path in paths)
    return are_large(models, math.prod(spec.compared_shape(label)[1]), numbers)
