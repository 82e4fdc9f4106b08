"""Finish: what is done to a merged network after averaging.

Its maps may be fitted to what the parents do, its units rescaled to theirs, its running
statistics reset or pooled.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.progress import counted, Progress
from jmudsc.repairs.batch_stats import reset_batch_stats
from jmudsc.repairs.least_squares import (
    check_owners,
    check_ridge,
    refit_layers,
    REFITS,
    RIDGE,
)
from jmudsc.repairs.pooled import pool_batch_stats
from jmudsc.repairs.rescale import repair_layers
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn, UpdateFn

REPAIRS = ("rescale", "pooled")


@dataclass(frozen=True)
class Finish:
    """What to do after averaging.

    Attributes:
        update_fn: updates running statistics as training does; given, they are reset.
        refit: `least-squares` or None.
        ridge: strength of the refit's penalty.
        owners: for each batch the model whose task it is from, for the refit; None if
            that is not known.
        repair: `rescale`, `pooled` or None.
    """

    update_fn: UpdateFn | None = None
    refit: str | None = None
    ridge: float = RIDGE
    owners: tuple[int, ...] | None = None
    repair: str | None = None


def check_finish(
    where: str, finish: Finish, batches: Iterable[PyTree] | None, models: int
) -> None:
    """Check what is to be done after averaging.

    Args:
        where: the caller, named in the error.
        finish: what to do.
        batches: the calibration batches, if there are any.
        models: number of models.

    Raises:
        ValueError: if an option is unknown or out of range, needs batches, or cannot go
            with another.
    """
    check_ridge(where, finish.ridge)
    if finish.owners is not None:
        check_owners(where, finish.owners, models)
        if finish.refit is None:
            raise ValueError(
                f"{where}: owners are given and refit is not, they would not be used; "
                'pass refit="least-squares", or leave owners out.'
            )
    options = {"refit": (finish.refit, REFITS), "repair": (finish.repair, REPAIRS)}
    for name, (value, known) in options.items():
        if value is not None and value not in known:
            raise ValueError(
                f'{where}: {name} is "{value}"{paths.did_you_mean(value, known)}; '
                f"needed is None or one of {', '.join(known)}."
            )
        if batches is None and value in ("least-squares", "rescale"):
            raise ValueError(
                f'{where}: {name}="{value}" needs batches and got None; pass '
                "calibration batches."
            )
    if finish.repair == "pooled" and (finish.refit or finish.update_fn is not None):
        other = "refit" if finish.refit else "update_fn"
        raise ValueError(
            f'{where}: repair="pooled" and {other} both set running statistics, only '
            "one of them can; leave one out."
        )


def finished(
    finish: Finish,
    spec: PermutationSpec,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    batches: Iterable[PyTree] | None,
    shares: Sequence[float],
    progress: Progress,
    within: Container[str] | None = None,
) -> tuple[PyTree, dict[str, str]]:
    """Finish a merged network.

    Args:
        finish: what to do.
        spec: the permutation spec.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        models: the variables of the parents.
        assignment: label -> `int32[models, *parent units, units]`.
        merged: the merged variables.
        batches: the calibration batches; None for none.
        shares: the share of each model.
        progress: called with the stage, how much of it is done, and out of how much.
        within: the paths of the leaves that a refit or repair may change; None for all.

    Returns:
        The variables, and for every leaf what was done with it or why nothing was.
    """
    changes: dict[str, str] = {}
    parts = spec, apply_fn, models, assignment
    if finish.refit and batches is not None:
        seen = counted(batches, "refitting", progress)
        options = finish.ridge, shares, finish.owners, within
        merged, changes = refit_layers(*parts, merged, seen, *options)
    if finish.repair == "rescale" and batches is not None:
        seen = counted(batches, "repairing", progress)
        merged, repaired = repair_layers(*parts, merged, seen, shares, within)
        changes = _both(changes, repaired)
    elif finish.repair == "pooled":
        merged = pool_batch_stats(spec, models, assignment, merged, shares)
    elif finish.update_fn is not None and batches is not None:
        seen = counted(batches, "resetting statistics", progress)
        merged = reset_batch_stats(finish.update_fn, merged, seen)
    return merged, changes


def _both(first: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """Put together what was done with each leaf, one after the other."""
    told = dict(first)
    for path, done in then.items():
        before = told.get(path, done)
        told[path] = done if before == done else f"{before}; {done}"
    return told
