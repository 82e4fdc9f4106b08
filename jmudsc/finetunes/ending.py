"""Ending: what is done once leaves are merged: repairs, and each model's own leaves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.finetunes.request import Request
from jmudsc.lazy import to_device
from jmudsc.merging.heads import repaired_apart
from jmudsc.merging.inputs import Inputs
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare
from jmudsc.progress import silent
from jmudsc.reordering.permute import identity
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.pipeline import repaired
from jmudsc.repairs.table import asked
from jmudsc.spec.axes import Fixed
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec, Site

_ALL = ("*",)


@dataclass(frozen=True, eq=False)
class Ended:
    """What a merge of fine-tunes ends as.

    Attributes:
        networks: the variables; where leaves are separate those of each model.
        spec: the permutation spec, of which all labels stay in place.
        assignment: label -> the same units for every model.
        changes: what was done with each leaf after merging.
    """

    networks: Sequence[PyTree]
    spec: PermutationSpec
    assignment: Mapping[str, np.ndarray]
    changes: Mapping[str, str]


def ended(where: str, request: Request, merged: PyTree) -> Ended:
    """Repair merged variables, and put each model's own leaves beside them.

    Args:
        where: the caller, named in errors.
        request: what was asked for, of whole models.
        merged: the merged variables; where leaves are separate those that are not, by
            path.
    """
    rows = asked(request.common.repairs)
    if rows and request.common.separate:
        return _ended_apart(where, request, merged)
    if not rows:
        networks = [merged]
        if request.common.separated:
            networks = [_joined(model, merged) for model in request.models]
        return Ended(networks, fixed_spec(merged), {}, {})
    assert request.tasks is not None
    first, common = next(request.tasks.of(0, 2)), request.common
    update = common.update_fn
    assert not isinstance(update, Sequence)  # as checked
    spec = freeze(infer_spec(request.first_fn, request.donor, first), _ALL)
    count = len(request.models)
    merger = Merger(
        spec,
        request.first_fn,
        request.models,
        _in_place(spec, count),
        (1 / count,) * count,
        update,
    )
    say = common.progress or silent
    found, changes = repaired(
        rows, merger, to_device(merged), request.tasks.batches, say
    )
    return Ended([found], spec, merger.assignment, changes)


def fixed_spec(variables: PyTree) -> PermutationSpec:
    """Return the spec of variables of which no unit moves."""
    axes = {
        path: tuple(Fixed(size) for size in np.shape(leaf))
        for path, leaf in paths.flatten(variables).items()
    }
    why = "fine-tunes of one base have their units in one order"
    fixed = {
        Site(path, number): why
        for path, each in axes.items()
        for number, axis in enumerate(each)
        if axis.size > 1
    }
    return PermutationSpec(axes, {}, fixed)


def _ended_apart(where: str, request: Request, merged: PyTree) -> Ended:
    """Repair the trunk, put every model's own leaves on it, and repair those."""
    assert request.apply_fn is not None
    assert request.tasks is not None
    common, first = request.common, next(request.tasks.of(0, 2))
    wanted = common.repairs
    options = MergeOptions(
        method="average",
        frozen=_ALL,
        separate=common.separated,
        update_fn=wanted.update_fn,
        refit=wanted.refit,
        ridge=wanted.ridge,
        owners=wanted.owners,
        repair=wanted.repair,
    )
    inputs = Inputs(request.apply_fn, request.models, request.tasks.batches)
    prepared = prepare(where, inputs, first, options)
    assignment = _in_place(prepared.spec, len(request.models))
    pairs = repaired_apart(
        prepared,
        assignment,
        to_device(merged),
        request.tasks.batches,
        common.progress or silent,
    )
    networks = [network for network, _ in pairs]
    return Ended(networks, prepared.spec, assignment, pairs[0][1])


def _joined(model: PyTree, merged: Mapping[str, Any]) -> PyTree:
    """Return a model with the merged leaves in place of its own."""
    leaves = paths.flatten(model)
    return paths.unflatten(model, leaves | paths.flatten(merged))


def _in_place(spec: PermutationSpec, models: int) -> dict[str, np.ndarray]:
    return {name: np.stack([row] * models) for name, row in identity(spec).items()}
