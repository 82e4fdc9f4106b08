"""Heads: finish a merged trunk, and on it every model's own head.

The trunk is fitted or repaired as a whole network would be, to all parents. A head has
one parent: it is fitted or repaired to what that parent's head does on its own trunk.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.merging.separate import Parts, put_together
from jmudsc.merging.trunk import trunk_fn
from jmudsc.progress import Progress
from jmudsc.reordering.permute import identity
from jmudsc.repairs.pipeline import Finish, finished
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn


def finished_apart(
    finishes: Sequence[Finish],
    parts: Parts,
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
        parts: from `take_apart`.
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
        common = parts.spec, read, trunks, assignment
        merged, changes = finished(of_trunk, *common, merged, batches, shares, progress)
    networks = put_together(parts, models, merged, assignment, shares)
    ended = []
    for number, network in enumerate(networks):
        finish, head = finishes[number], parts.heads[number]
        if finish.repair == "pooled":  # a head's statistics are those of one parent
            ended.append((network, changes))
            continue
        spec, parent = parts.specs[number], models[number]
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
