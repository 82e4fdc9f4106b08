"""Batch statistics: set running statistics anew, since averaging took variance away.

They are reset over a pass of batches, or pooled from those of the parents.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import check_iterable, checked, no_batches
from jmudsc.reordering.combine import check_assignment, combine_leaf, shares_of
from jmudsc.reordering.permute import permute_leaf
from jmudsc.reordering.transport import moves_of
from jmudsc.repairs.merger import Merger
from jmudsc.sharding import over_processes, placed_like, to_host
from jmudsc.spec.check_variables import check_covers, check_same
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import UpdateFn

# Far from any statistic of a batch, so that rounding does not blur the momentum.
_FAR = 2.0**20


def reset_batch_stats(
    update_fn: UpdateFn, variables: PyTree, batches: Iterable[PyTree]
) -> PyTree:
    """Set running statistics to their exact average over a pass of batches.

    With momentum m an update is `m * old + (1 - m) * new`. Updates from two known
    values of `old` give m, whatever it is; from `old = 0` every batch then gives `new`.
    The result is the mean of `new` over all batches, weighted by their numbers of
    examples (the statistics reset of Jordan et al. 2023, arXiv:2211.08403, section 3).

    Args:
        update_fn: `(variables, batch) -> variables`, as training updates them: the
            running statistics move, nothing else that is floating-point does.
        variables: the merged variables.
        batches: what `update_fn` takes, one by one; read once. The leading axis of the
            first leaf of a batch counts its examples.

    Returns:
        The variables with new running statistics; all other leaves are unchanged.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch.
        ValueError: if there are no batches, `update_fn` changes the tree or moves
            nothing, or a new statistic is not finite.
    """
    check_iterable("reset_batch_stats", batches)
    update = jax.jit(update_fn)
    leaves = paths.flatten(variables)
    retained: dict[str, float] = {}
    total: dict[str, Any] = {}
    after: dict[str, Any] = {}
    examples = 0
    for number, batch in enumerate(checked("reset_batch_stats", batches)):
        if number == 0:
            retained = _momenta(update, variables, batch)
            total = dict.fromkeys(retained, 0.0)
        after = _after(update, variables, dict.fromkeys(retained, 0.0), batch)
        size = int(np.shape(jax.tree.leaves(batch)[0])[0])
        examples += size
        for name, momentum in retained.items():
            seen = to_host(after[name]).astype(np.float64) / (1 - momentum)
            _check_finite(name, seen, number)
            total[name] = total[name] + size * seen
    if examples == 0:
        raise no_batches("reset_batch_stats")
    counts, totals = zip(*over_processes((examples, total), after), strict=True)
    examples = sum(map(int, counts))
    total = jax.tree.map(lambda *parts: np.sum(parts, axis=0), *totals)
    fresh = {
        name: placed_like(
            jnp.asarray(value / examples, jnp.result_type(leaves[name])), leaves[name]
        )
        for name, value in total.items()
    }
    return paths.unflatten(variables, leaves | fresh)


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
        assignment: label -> `int32[models, *outer units, units]`.
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
            "pool_batch_stats: spec: expected at least one running mean paired with a "
            "variance, got none. Derive the spec with infer_spec, or leave networks "
            "without BatchNorm as they are."
        )
    rows = {name: np.asarray(row) for name, row in assignment.items()}
    moves = {name: moves_of(row, shares) for name, row in rows.items()}
    pooled = {}
    for mean, variance in spec.variances.items():
        means = [_widened(model[mean]) for model in leaves]
        middle = combine_leaf(spec, mean, means, moves, shares)
        spreads = []
        for number, model in enumerate(leaves):
            own = {name: row[number] for name, row in rows.items()}
            gap = means[number] - jnp.asarray(permute_leaf(spec, mean, middle, own))
            spreads.append(_widened(model[variance]) + gap * gap)
        spread = combine_leaf(spec, variance, spreads, moves, shares)
        pooled[mean] = middle.astype(jnp.result_type(leaves[0][mean]))
        pooled[variance] = spread.astype(jnp.result_type(leaves[0][variance]))
    return paths.unflatten(merged, paths.flatten(merged) | pooled)


def reset(
    merger: Merger,
    merged: PyTree,
    batches: Iterable[PyTree],
    within: Container[str] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Do what `reset_batch_stats` does, as a repair.

    Args:
        merger: how the network was merged, with an `update_fn`.
        merged: its variables.
        batches: what `update_fn` takes, one by one; read once.
        within: not looked at: the statistics of all of a network go together.

    Returns:
        The variables, and nothing of what was done: the statistics are new, no more.

    Raises:
        ValueError: as `reset_batch_stats`.
    """
    assert merger.update_fn is not None
    return reset_batch_stats(merger.update_fn, merged, batches), {}


def pool(
    merger: Merger,
    merged: PyTree,
    batches: Iterable[PyTree] | None,
    within: Container[str] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Do what `pool_batch_stats` does, as a repair.

    Args:
        merger: how the network was merged.
        merged: its variables.
        batches: not looked at.
        within: the paths of the leaves that may change; None for all.

    Returns:
        The variables, and nothing of what was done: the statistics are new, no more.

    Raises:
        ValueError: as `pool_batch_stats`.
    """
    spec, parents, assignment = merger.spec, merger.parents, merger.assignment
    pooled = pool_batch_stats(spec, parents, assignment, merged, merger.shares)
    return pooled, {}


def _momenta(update: UpdateFn, variables: PyTree, batch: PyTree) -> dict[str, float]:
    """Find the leaves that an update moves towards the batch, and their momenta."""
    moved = _moved(update, variables, batch)
    low = _after(update, variables, dict.fromkeys(moved, 0.0), batch)
    high = _after(update, variables, dict.fromkeys(moved, _FAR), batch)
    found = {}
    for name in moved:
        _check_finite(name, to_host(low[name]), 0)
        span = to_host(high[name]).astype(float) - to_host(low[name]).astype(float)
        momentum = _rounded(float(np.median(span)) / _FAR)
        if 0 <= momentum < 1:  # a counter has 1
            found[name] = momentum
    if not found:
        raise ValueError(
            "reset_batch_stats: update_fn: expected it to move at least one running "
            "statistic, got none on batch 0. Run the model in training mode and return "
            "its updated variables."
        )
    return found


def _moved(update: UpdateFn, variables: PyTree, batch: PyTree) -> list[str]:
    """Find the floating-point leaves that an update changes.

    A statistic may already be that of the batch and stay, but not from two values.
    """
    leaves = paths.flatten(variables)
    floating = {
        name: jnp.asarray(leaf, _wide(leaf))
        for name, leaf in leaves.items()
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
    moved = set()
    for scale, shift in ((1, 0), (2, 1)):
        before = {
            name: (scale * leaf + shift).astype(jnp.result_type(leaves[name]))
            for name, leaf in floating.items()
        }
        after = _after(update, variables, before, batch)
        moved |= {
            n
            for n, leaf in before.items()
            if not np.array_equal(to_host(leaf), to_host(after[n]))
        }
    return [name for name in floating if name in moved]


def _rounded(momentum: float) -> float:
    """Undo the rounding of a momentum to float32, if it is a short decimal."""
    short = round(momentum, 6)
    return short if abs(short - momentum) < 3e-7 else momentum


def _after(
    update: UpdateFn, variables: PyTree, values: Mapping[str, Any], batch: PyTree
) -> dict[str, Any]:
    """Update variables in which some leaves are set to an array or a constant.

    Constants are wide, so that a momentum is not rounded to bfloat16.
    """
    leaves = paths.flatten(variables)
    filled = {
        name: value
        if isinstance(value, jax.Array)
        else jnp.full_like(leaves[name], value, dtype=_wide(leaves[name]))
        for name, value in values.items()
    }
    after = paths.flatten(update(paths.unflatten(variables, leaves | filled), batch))
    if list(after) != list(leaves):
        strays = sorted(set(after) ^ set(leaves))
        raise ValueError(
            "reset_batch_stats: update_fn: expected variables of the structure it was "
            f"given, got others. The difference is:\n{paths.listed(strays)}\nReturn "
            "all variables, not only those that were updated."
        )
    return after


def _wide(leaf: Any) -> np.dtype:
    dtype = jnp.result_type(leaf)
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype


def _check_finite(name: str, values: ArrayLike, number: int) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            f"reset_batch_stats: {name}: expected finite values, got others after "
            f"batch {number}. Check the range of the input."
        )


def _widened(leaf: ArrayLike) -> jax.Array:
    wide = jnp.promote_types(jnp.result_type(leaf), jnp.float32)
    return jnp.asarray(leaf, wide)
