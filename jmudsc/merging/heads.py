"""Heads: carry every model's own leaves to a merged trunk, and repair them there.

The trunk is fitted or repaired as a whole network would be, to all parents. A head has
one parent: it is fitted or repaired to what that parent's head does on its own trunk.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.merging.prepare import Prepared
from jmudsc.merging.separate import TrunkAndHeads
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
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.pipeline import repaired
from jmudsc.repairs.table import asked
from jmudsc.spec.permutation_spec import PermutationSpec


def repaired_apart(
    prepared: Prepared,
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    batches: Iterable[PyTree] | None,
    progress: Progress,
) -> list[tuple[PyTree, dict[str, str]]]:
    """Repair a merged trunk, put every head on it, and repair the heads.

    Args:
        prepared: the models.
        assignment: of the labels of the trunk.
        merged: the merged trunk.
        batches: the calibration batches; None for none.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        Per model its variables, and for every leaf what was done with it or why nothing
        was.
    """
    rows, apart, shares = asked(prepared.options), prepared.apart, prepared.shares
    merger = Merger(apart.spec, prepared.trunk_fn, prepared.trunks, assignment, shares)
    of_trunk = [row for row in rows if row.on_trunk]
    of_heads = [row for row in rows if row.on_heads]
    merged, changes = repaired(of_trunk, merger, merged, batches, progress)
    networks = put_together(apart, prepared.models, merged, assignment, shares)
    ended = []
    for number, network in enumerate(networks):
        own, head = _of_one(prepared, assignment, number), apart.heads[number]
        network, more = repaired(of_heads, own, network, batches, progress, head)
        ended.append((network, changes | more))
    return ended


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


def _of_one(
    prepared: Prepared, assignment: Mapping[str, np.ndarray], number: int
) -> Merger:
    """Return the merger of one model with itself, as far as its head is concerned.

    A head makes units of the trunk only where the assignment is one-to-one.
    """
    spec = prepared.apart.specs[number]
    rows = {name: row[number] for name, row in assignment.items()}
    followed = {name: row for name, row in rows.items() if _is_one_to_one(row)}
    own = {name: row[None] for name, row in (identity(spec) | followed).items()}
    return Merger(
        spec,
        prepared.apply_fns[number],
        [prepared.models[number]],
        own,
        (1.0,),
        prepared.update_fns[number],
    )


def _is_one_to_one(row: np.ndarray) -> bool:
    return bool((np.sort(row, axis=-1) == np.arange(row.shape[-1])).all())


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
