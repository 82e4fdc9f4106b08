"""Heads: finish a merged trunk, and on it every model's own head.

The trunk is fitted or repaired as a whole network would be, to all parents. A head has
one parent: it is fitted or repaired to what that parent's head does on its own trunk.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.merging.separate import trunk_fn, TrunkAndHeads
from jmudsc.progress import Progress
from jmudsc.reordering.combine import consumed_axes
from jmudsc.reordering.permute import identity
from jmudsc.reordering.transport import (
    form_of,
    LeafForm,
    Move,
    move_leaf,
    moves_of,
    names_in_leaf,
)
from jmudsc.repairs.pipeline import Finish, finished
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn


def finished_apart(
    finishes: Sequence[Finish],
    apart: TrunkAndHeads,
    apply_fns: Sequence[ApplyFn],
    models: Sequence[PyTree],
    trunks: Sequence[Mapping[str, Any]],
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    batches: Iterable[PyTree] | None,
    shares: Sequence[float],
    progress: Progress,
) -> list[tuple[PyTree, dict[str, str]]]:
    """Finish a merged trunk and put it together with the finished heads.

    Args:
        finishes: what to do, per model; they differ in `update_fn` only.
        apart: from `take_apart`.
        apply_fns: `(variables, batch) -> outputs`, in evaluation mode, per model.
        models: the variables of the parents.
        trunks: from `trunks_of`.
        assignment: of the labels of the trunk.
        merged: the merged trunk.
        batches: the calibration batches; None for none.
        shares: the share of each model.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        Per model its variables, and for every leaf what was done with it or why nothing
        was.
    """
    of_trunk = replace(finishes[0], update_fn=None)
    finishes = [replace(finish, owners=None) for finish in finishes]
    changes: dict[str, str] = {}
    if of_trunk.refit or of_trunk.repair:
        read = trunk_fn(apply_fns[0], models[0], trunks[0])
        common = apart.spec, read, trunks, assignment
        merged, changes = finished(of_trunk, *common, merged, batches, shares, progress)
    networks = put_together(apart, models, merged, assignment, shares)
    ended = []
    for number, network in enumerate(networks):
        finish, head = finishes[number], apart.heads[number]
        if finish.repair == "pooled":  # a head's statistics are those of one parent
            ended.append((network, changes))
            continue
        spec, parent = apart.specs[number], models[number]
        rows = {name: row[number] for name, row in assignment.items()}
        own = spec, apply_fns[number], [parent], _of_one(spec, rows)
        network, more = finished(
            finish, *own, network, batches, (1.0,), progress, within=head
        )
        ended.append((network, changes | more))
    return ended


def _of_one(
    spec: PermutationSpec, rows: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the assignment of one model, as far as its head makes units of labels.

    A head makes units of the trunk only where the assignment is one-to-one.
    """
    stay = identity(spec)
    followed = {name: row for name, row in rows.items() if _is_one_to_one(row)}
    return {name: row[None] for name, row in (stay | followed).items()}


def _is_one_to_one(row: np.ndarray) -> bool:
    return bool((np.sort(row, axis=-1) == np.arange(row.shape[-1])).all())


def put_together(
    apart: TrunkAndHeads,
    models: Sequence[PyTree],
    merged: PyTree,
    assignment: Mapping[str, np.ndarray],
    shares: Sequence[float],
) -> list[PyTree]:
    """Join the merged trunk with the separate leaves of every model.

    Args:
        apart: from `take_apart`.
        models: the variables of each model, whose structure is kept.
        merged: the merged trunk.
        assignment: the assignment of the labels of the trunk.
        shares: the share of each model, summing to 1.

    Returns:
        Per model its variables: the trunk merged, its own leaves carried.
    """
    trunk = paths.flatten(merged)
    moves = {name: moves_of(row, shares) for name, row in assignment.items()}
    networks = []
    for number, model in enumerate(models):
        own = {name: move[number] for name, move in moves.items()}
        head = _carried(apart.specs[number], apart.heads[number], own)
        networks.append(paths.unflatten(model, trunk | head))
    return networks


def _carried(
    spec: PermutationSpec, head: Mapping[str, Any], moves: Mapping[str, Move]
) -> dict[str, Any]:
    stay = {name: Move(row, None) for name, row in identity(spec).items()}
    moves = {**stay, **moves}
    carried = {}
    for path, leaf in head.items():
        names = names_in_leaf(spec, path)
        if not moves.keys() & names:
            carried[path] = leaf
            continue
        form, consumed = form_of(spec, path), consumed_axes(spec, path)
        own = [moves[name] for name in names]
        carried[path] = _carry(leaf, own, form, consumed)
    return carried


@functools.partial(jax.jit, static_argnames=("form", "consumed"))
def _carry(
    leaf: jax.Array, moves: list[Move], form: LeafForm, consumed: tuple[bool, ...]
) -> jax.Array:
    dtype = jnp.result_type(leaf)
    wide = jnp.promote_types(dtype, jnp.float32) if _is_narrow(dtype) else dtype
    moved = move_leaf(jnp.asarray(leaf, wide), moves, form, consumed)
    return moved.astype(dtype)


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact) and dtype.itemsize < 4
