"""Pooled running statistics: those of all parents' units together, without any data."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.reordering.combine import check_assignment, combine_leaf, shares_of
from jmudsc.reordering.permute import permute_leaf
from jmudsc.reordering.transport import moves_of
from jmudsc.spec.check_variables import check_covers, check_same
from jmudsc.spec.permutation_spec import PermutationSpec


def pool_batch_stats(
    spec: PermutationSpec,
    models: Sequence[PyTree],
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    weights: Sequence[float] | None = None,
) -> PyTree:
    """Set running statistics to the mean and variance of the mixture of the parents.

    With mean m_i, variance v_i and share w_i of every unit that shares a merged unit,

        mean = sum_i w_i m_i,  variance = sum_i w_i (v_i + (m_i - mean)^2),

    the law of total variance (Li et al. 2024, arXiv:2407.13771). It describes
    activations drawn from one parent or the other. Those of the merged network are
    averages of the two, and vary less unless the parents agree: where there are
    batches, `reset_batch_stats` and `repair` do better.

    Args:
        spec: the permutation spec; it says which mean goes with which variance.
        models: the variables of each model.
        assignment: label -> `int32[models, *parent units, units]`.
        merged: what `combine` made of them.
        weights: the share of each model; None for equal shares.

    Returns:
        The variables with new running statistics; all other leaves are unchanged. A
        variance without a mean stays the average.

    Raises:
        ValueError: if the arguments do not fit together, or the spec pairs no running
            mean with a variance.
    """
    check_same("pool_batch_stats", [*models, merged])
    leaves = [paths.flatten(model) for model in models]
    check_covers("pool_batch_stats", spec, leaves[0])
    shares = shares_of("pool_batch_stats", weights, len(models))
    check_assignment("pool_batch_stats", spec, assignment, len(models))
    if not spec.variances:
        raise ValueError(
            "pool_batch_stats: the spec pairs no running mean with a variance, needed "
            "at least one; derive it with infer_spec, or leave networks without "
            "BatchNorm as they are."
        )
    rows = {name: np.asarray(row) for name, row in assignment.items()}
    moves = {name: moves_of(row, shares) for name, row in rows.items()}
    pooled = {}
    for mean, variance in spec.variances.items():
        means = [_wide(model[mean]) for model in leaves]
        middle = combine_leaf(spec, mean, means, moves, shares)
        spreads = []
        for number, model in enumerate(leaves):
            own = {name: row[number] for name, row in rows.items()}
            gap = means[number] - jnp.asarray(permute_leaf(spec, mean, middle, own))
            spreads.append(_wide(model[variance]) + gap * gap)
        spread = combine_leaf(spec, variance, spreads, moves, shares)
        pooled[mean] = middle.astype(jnp.result_type(leaves[0][mean]))
        pooled[variance] = spread.astype(jnp.result_type(leaves[0][variance]))
    return paths.unflatten(merged, paths.flatten(merged) | pooled)


def _wide(leaf: ArrayLike) -> jax.Array:
    wide = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
    return jnp.asarray(leaf, wide)
