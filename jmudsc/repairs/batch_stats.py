"""Batch statistics: set running statistics anew, since averaging took variance away.

They are reset over a pass of batches, or pooled from those of the parents.
"""

import functools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import batch_kind, check_iterable, checked, no_batches
from jmudsc.compiled import kept
from jmudsc.derivation.program import Program, run, trace
from jmudsc.derivation.terms.values import Place
from jmudsc.reordering.combine import check_assignment, combine_leaf, shares_of
from jmudsc.reordering.permute import permute_leaf
from jmudsc.reordering.transport import moves_of
from jmudsc.repairs.merger import Merger
from jmudsc.sharding import (
    from_host,
    over_processes,
    placed_like,
    sharding_of,
    to_host,
)
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
    values of `old` give m, whatever it is; from `old = 0` every batch then gives `new`,
    in one forward pass.
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
    leaves = paths.flatten(variables)
    retained: dict[str, float] = {}
    total: dict[str, Any] = {}
    after: dict[str, Any] = {}
    examples = 0
    for number, batch in enumerate(checked("reset_batch_stats", batches)):
        update = _update_of(update_fn, variables, batch)
        after, spans = update(leaves, batch, tuple(retained) or update.moved)
        if number == 0:
            for name, value in after.items():
                _check_finite(name, to_host(value), number)
            retained = _momenta(spans)
            total = dict.fromkeys(retained, 0.0)
            if len(retained) < len(spans):  # what is no statistic keeps its value
                after, _ = update(leaves, batch, tuple(retained))
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
        name: placed_like(_put(value / examples, leaves[name]), leaves[name])
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


@dataclass(frozen=True)
class _Update:
    """An update of running statistics, traced for one shape of batch.

    Attributes:
        program: the traced update; its outputs are the leaves of the variables.
        moved: the floating-point leaves that it does not just hand on.
    """

    program: Program
    moved: tuple[str, ...]

    def __call__(
        self, leaves: Mapping[str, Any], batch: PyTree, statistics: tuple[str, ...]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """Update some leaves that were 0.

        Returns:
            Their new values, and how much larger these are where the leaves were far
            from 0. One program computes both, and the network in it once: no activation
            depends on the leaves.
        """
        args = [*leaves.values(), *jax.tree.leaves(batch)]
        return self.compiled(args, statistics)

    @functools.cached_property
    def compiled(self) -> Callable[..., Any]:
        """What it does when it is called, compiled."""

        @functools.partial(jax.jit, static_argnums=1)
        def from_zero(args: list, statistics: tuple[str, ...]) -> Any:
            low, high = (
                self.after(args, self.filled(statistics, x)) for x in (0.0, _FAR)
            )
            return low, jax.tree.map(jnp.subtract, high, low)

        return from_zero

    def after(self, args: list, old: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Return what becomes of leaves that are given values; use under `jit`."""
        outs = dict(zip(self.program.paths, self.program.outvars, strict=True))
        given = {**dict(zip(self.program.paths, args, strict=False)), **old}
        values = [*given.values(), *args[len(given) :]]
        wanted = [Place(outs[name]) for name in old]
        found = run(self.program, values, wanted)
        return dict(zip(old, found, strict=True))

    def filled(self, names: Iterable[str], value: float) -> dict[str, jax.Array]:
        """Return arrays of the shapes of leaves that hold one value."""
        shapes: dict[str, Any] = {n: v.aval for n, v in self.program.leaves.items()}
        return {n: jnp.full(shapes[n].shape, value, shapes[n].dtype) for n in names}


def _update_of(update_fn: UpdateFn, variables: PyTree, batch: PyTree) -> _Update:
    """Return the traced update of batches of one shape."""
    key = "reset", batch_kind(variables), batch_kind(batch)
    return kept(update_fn, key, lambda: _traced(update_fn, variables, batch))


def _traced(update_fn: UpdateFn, variables: PyTree, batch: PyTree) -> _Update:
    """Trace an update; statistics are wide, so that no momentum is rounded."""
    leaves = paths.flatten(variables)

    def update(variables: PyTree, batch: PyTree) -> list[Any]:
        after = paths.flatten(update_fn(variables, batch))
        _check_structure(leaves, after)
        return list(after.values())

    program = trace(update, variables, batch)
    moved = _moved(program, leaves)
    wide = {
        n: jax.ShapeDtypeStruct(np.shape(leaves[n]), _wide(leaves[n])) for n in moved
    }
    if any(x.dtype != jnp.result_type(leaves[n]) for n, x in wide.items()):
        program = trace(update, paths.unflatten(variables, leaves | wide), batch)
    return _Update(program, moved)


def _moved(program: Program, leaves: Mapping[str, Any]) -> tuple[str, ...]:
    """Find the floating-point leaves that a program does not just hand on."""
    ends = zip(program.leaves.items(), program.outvars, strict=True)
    return tuple(
        name
        for (name, before), after in ends
        if jnp.issubdtype(jnp.result_type(leaves[name]), jnp.floating)
        and after is not before
        and not isinstance(after, jex.Literal)
    )


def _momenta(spans: Mapping[str, jax.Array]) -> dict[str, float]:
    """Find the leaves that an update moves towards the batch, and their momenta."""
    found = {}
    for name, span in spans.items():
        momentum = _rounded(float(np.median(to_host(span))) / _FAR)
        if 0 <= momentum < 1:  # a counter has 1
            found[name] = momentum
    if not found:
        raise ValueError(
            "reset_batch_stats: update_fn: expected it to move at least one running "
            "statistic, got none on batch 0. Run the model in training mode and return "
            "its updated variables."
        )
    return found


def _rounded(momentum: float) -> float:
    """Undo the rounding of a momentum to float32, if it is a short decimal."""
    short = round(momentum, 6)
    return short if abs(short - momentum) < 3e-7 else momentum


def _check_structure(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    if list(after) != list(before):
        strays = sorted(set(after) ^ set(before))
        raise ValueError(
            "reset_batch_stats: update_fn: expected variables of the structure it was "
            f"given, got others. The difference is:\n{paths.listed(strays)}\nReturn "
            "all variables, not only those that were updated."
        )


def _put(value: ArrayLike, leaf: Any) -> jax.Array:
    """Put a value on the device of a leaf, with its dtype."""
    array = np.asarray(value).astype(jnp.result_type(leaf))
    return from_host(array, None if sharding_of(leaf) else leaf)


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
