"""Weight vectors: the slices of one leaf that say what the units of a label do.

Every other axis of the leaf is brought to the merged order first, so that the slices of
units of different models can be compared.
"""

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np

from jmudsc.lazy import Leaf, present
from jmudsc.matching.moments import Centered, centered, real_samples
from jmudsc.reordering.blocks import (
    Block,
    blocks,
    placed,
    places_of,
    units_last,
    Values,
)
from jmudsc.reordering.transport import (
    form_of,
    LeafForm,
    Move,
    move_some_units,
    move_units,
    moves_of,
    names_in_leaf,
)
from jmudsc.sharding import to_host
from jmudsc.spec.axes import labels_by_axis, Units
from jmudsc.spec.permutation_spec import PermutationSpec, Site

Stays = tuple[bool, ...]  # for each outer label of a label whether it stays in place
Orders = dict[Stays, Move]


def others_on(spec: PermutationSpec, label: str, site: Site) -> tuple[str, ...] | None:
    """Return the labels on whose assignment the slices at a site depend.

    Args:
        spec: the permutation spec.
        label: the label that is read.
        site: where.

    Returns:
        The other labels of the leaf and their outer labels, in the order of the spec;
        None if the units cannot be read there, since something nested in them is there
        too.
    """
    moved = _moved_with(spec, label, site)
    if moved is None:
        return None
    needed = {n for name in moved for n in (name, *spec.labels[name].parents)}
    return tuple(name for name in spec.labels if name in needed)


def _moved_with(spec: PermutationSpec, label: str, site: Site) -> Set[str] | None:
    """Return the labels that lie with a label in some part of a leaf."""
    stay = Counter((label, *spec.labels[label].parents))
    moved, is_readable = set(), False
    for block in labels_by_axis(spec.axes[site.path]):
        names = list(itertools.chain(*block))
        if label in block[site.axis] and not any(
            label in spec.labels[name].parents for name in names
        ):
            is_readable = True
            moved |= set(Counter(names) - stay)
    return moved if is_readable else None


def unit_slices(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Leaf]],
    assignment: Mapping[str, np.ndarray],
    label: str,
    site: Site,
) -> list[Centered]:
    """Read the slices of the units of a label at one site, in every model.

    Args:
        spec: the permutation spec.
        models: per model, leaf path -> array, lazy or not.
        assignment: label -> `int32[models, *outer units, units]`.
        label: the label; it can be read there, as `others_on` says.
        site: where.

    Returns:
        Per model the mean of each unit's entries, and the entries without it, on the
        host; outer labels that stay in place are axes that lead, as in `Moments`.
    """
    return [centered(x) for x in unit_entries(spec, models, assignment, label, site)]


def unit_entries(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, Leaf]],
    assignment: Mapping[str, np.ndarray],
    label: str,
    site: Site,
    only: tuple[str, np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Read the entries of the units of a label at one site, in every model.

    Args:
        spec: the permutation spec.
        models: per model, leaf path -> array, lazy or not.
        assignment: label -> `int32[models, *outer units, units]`.
        label: the label; it can be read there, as `others_on` says.
        site: where.
        only: another label and some of its merged units, whose entries are read and no
            others; for one that `what_moved` returns. None for all.

    Returns:
        Per model (entries, *apart, units), on the host.
    """
    names = names_in_leaf(spec, site.path)
    shares = (1 / len(models),) * len(models)
    moved = _moved_with(spec, label, site) or set()
    moves = {n: moves_of(assignment[n], shares) for n in names if n in moved}
    zipped = {n for n, (move, *_) in moves.items() if move.scale is not None}
    reading = _Reading(
        form=form_of(spec, site.path),
        summed=tuple(
            not zipped.isdisjoint(axis.labels())
            and Site(site.path, n) not in spec.consumed
            for n, axis in enumerate(spec.axes[site.path])
        ),
        label=str(names.index(label)),
        axis=site.axis,
        apart=spec.compared_shape(label)[0],
        only=None if only is None else (str(names.index(only[0])), only[1]),
    )
    still = spec.labels[label].parents
    slices = []
    for i, model in enumerate(models):
        rows = {name: row[i] for name, row in assignment.items()}
        orders = [
            _by_order(spec, moves[name][i], rows, name, still) if name in moves else {}
            for name in names
        ]
        slices.append(_read(to_host(present(model[site.path])), orders, reading))
    return slices


def _by_order(
    spec: PermutationSpec,
    move: Move,
    rows: Mapping[str, np.ndarray],
    name: str,
    still: Sequence[str],
) -> Orders:
    """Index a move by its outer labels' own units, for those of them that stay.

    A label that stays on one axis may be brought to the merged order on another.
    """
    outer = spec.labels[name].parents
    options = [(False, True) if label in still else (False,) for label in outer]
    return {
        stays: _in_order(spec, move, rows, name, stays)
        for stays in itertools.product(*options)
    }


def _in_order(
    spec: PermutationSpec,
    move: Move,
    rows: Mapping[str, np.ndarray],
    name: str,
    stays: Stays,
) -> Move:
    if not any(stays):
        return move
    outer = spec.labels[name].parents
    grid = np.indices([spec.labels[label].size for label in outer], sparse=True)
    merged: list[np.ndarray] = []
    for label, own, is_own in zip(outer, grid, stays, strict=True):
        above = [merged[outer.index(o)] for o in spec.labels[label].parents]
        merged.append(rows[label][(*above, own)] if is_own else own)
    units = tuple(merged)
    return Move(
        np.asarray(move.index)[units],
        None if move.scale is None else np.asarray(move.scale)[units],
    )


@dataclass(frozen=True)
class _Reading:
    """How the slices of a leaf are read.

    Attributes:
        form: the form of the leaf.
        summed: for each axis whether its units are summed, where they are zipped.
        label: the label that is read, as the form calls it.
        axis: the axis of the leaf that it is read on.
        apart: the sizes of its outer labels that stay in place.
        only: a label and its merged units that are read, and no others; None for all.
    """

    form: LeafForm
    summed: tuple[bool, ...]
    label: str
    axis: int
    apart: tuple[int, ...]
    only: tuple[str, np.ndarray] | None = None


def _read(leaf: np.ndarray, moves: list[Orders], reading: _Reading) -> np.ndarray:
    """Return the slices of a label, every other axis in the merged order."""
    outer, only = dict(reading.form.outer), reading.only

    def read(values: Values, block: Block, axis: int, lead: tuple[int, ...]) -> Values:
        for other, others_lead, name in placed(block, outer):
            if other not in (axis, *lead):
                flag = reading.summed[block.origins[other]]
                move = moves[int(name)][tuple(a in lead for a in others_lead)]
                if only is not None and name == only[0]:
                    values = move_some_units(values, other, move, flag, only[1])
                else:
                    values = move_units(values, other, others_lead, move, flag)
        return units_last(values, axis, lead)

    wide = np.result_type(leaf.dtype, np.float32)
    wide = np.complex64 if np.issubdtype(wide, np.complexfloating) else np.float32
    runs = [
        read(values, block, axis, lead)
        for values, block in blocks(leaf.astype(wide, copy=False), reading.form.axes)
        for axis, lead in places_of(block, reading.label, outer)
        if block.origins[axis] == reading.axis and _has(block, only)
    ]
    entries = real_samples(runs[0] if len(runs) == 1 else np.concatenate(runs))
    units = math.prod(entries.shape[1:]) // math.prod(reading.apart)
    return entries.reshape(len(entries), *reading.apart, units)


def _has(block: Block, only: tuple[str, np.ndarray] | None) -> bool:
    """Whether a label of which some merged units are read is on a block at all."""
    atoms = (atom.label for atom in block.atoms if isinstance(atom, Units))
    return only is None or only[0] in atoms
