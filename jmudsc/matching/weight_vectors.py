"""Slices: what the weights of one leaf say of the units of a label on it.

Every other axis of the leaf is brought to the merged order first, so that the slices of
units of different models can be compared.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence, Set

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jmudsc.lazy import Leaf, present
from jmudsc.matching.moments import centred, real_samples
from jmudsc.reordering.blocks import Block, blocks, placed, places_of, units_last
from jmudsc.reordering.transport import (
    anonymous,
    Move,
    move_units,
    moves_of,
    names_in_leaf,
    Parents,
)
from jmudsc.spec.axes import Axis, labels_by_axis
from jmudsc.spec.permutation_spec import PermutationSpec, Site

Stays = tuple[bool, ...]  # for each parent of a label whether it stays in place
Orders = dict[Stays, Move]


def others_on(spec: PermutationSpec, label: str, site: Site) -> tuple[str, ...] | None:
    """Return the labels on whose assignment the slices at a site depend.

    Args:
        spec: the permutation spec.
        label: the label that is read.
        site: where.

    Returns:
        The other labels of the leaf and their parents, in the order of the spec; None
        if the units cannot be read there, since something nested in them is there too.
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
) -> list[tuple[Float[Array, "*apart units"], Float[Array, "entries *apart units"]]]:
    """Read the slices of the units of a label at one site, in every model.

    Args:
        spec: the permutation spec.
        models: per model, leaf path -> array, lazy or not.
        assignment: label -> `int32[models, *parent units, units]`.
        label: the label; it can be read there, as `others_on` says.
        site: where.

    Returns:
        Per model the mean of each unit's entries, and the entries without it; parents
        that stay in place are axes that lead, as in `Moments`.
    """
    names = names_in_leaf(spec, site.path)
    axes, parents = anonymous(spec, site.path, names)
    shares = (1 / len(models),) * len(models)
    moved = _moved_with(spec, label, site) or set()
    moves = {n: moves_of(assignment[n], shares) for n in names if n in moved}
    zipped = {n for n, (move, *_) in moves.items() if move.scale is not None}
    still = spec.labels[label].parents
    # What makes no difference is left out, so that more leaves are of one form.
    read = functools.partial(
        _read_units,
        axes=axes,
        parents=parents,
        summed=tuple(
            not zipped.isdisjoint(axis.labels())
            and Site(site.path, n) not in spec.consumed
            for n, axis in enumerate(spec.axes[site.path])
        ),
        label=str(names.index(label)),
        number=site.axis,
        apart=spec.compared_shape(label)[0],
    )
    return [
        read(
            present(model[site.path]),
            [
                _by_order(spec, moves[name][i], assignment, name, still, i)
                if name in moves
                else {}
                for name in names
            ],
        )
        for i, model in enumerate(models)
    ]


def _by_order(
    spec: PermutationSpec,
    move: Move,
    assignment: Mapping[str, np.ndarray],
    name: str,
    still: Sequence[str],
    model: int,
) -> Orders:
    """Index a move by its parents' own units, for those of them that stay in place.

    A label that stays on one axis may be brought to the merged order on another.
    """
    parents = spec.labels[name].parents
    options = [(False, True) if parent in still else (False,) for parent in parents]
    return {
        stays: _in_order(spec, move, assignment, name, stays, model)
        for stays in itertools.product(*options)
    }


def _in_order(
    spec: PermutationSpec,
    move: Move,
    assignment: Mapping[str, np.ndarray],
    name: str,
    stays: Stays,
    model: int,
) -> Move:
    if not any(stays):
        return move
    parents = spec.labels[name].parents
    grid = np.indices([spec.labels[parent].size for parent in parents], sparse=True)
    merged: list[np.ndarray] = []
    for parent, own, is_own in zip(parents, grid, stays, strict=True):
        outer = [merged[parents.index(p)] for p in spec.labels[parent].parents]
        merged.append(assignment[parent][model][(*outer, own)] if is_own else own)
    place = tuple(merged)
    return Move(
        np.asarray(move.index)[place],
        None if move.scale is None else np.asarray(move.scale)[place],
    )


@functools.partial(
    jax.jit, static_argnames=("axes", "parents", "summed", "label", "number", "apart")
)
def _read_units(
    leaf: jax.Array,
    moves: list[Orders],
    axes: tuple[Axis, ...],
    parents: Parents,
    summed: tuple[bool, ...],
    label: str,
    number: int,
    apart: tuple[int, ...],
) -> tuple[Float[Array, "*apart units"], Float[Array, "entries *apart units"]]:
    """Return the slices at axis `number`, every other axis in the merged order."""

    def read(values: jax.Array, block: Block, axis: int, lead: tuple[int, ...]):
        for other, others_lead, name in placed(block, dict(parents)):
            if other not in (axis, *lead):
                flag = summed[block.origins[other]]
                move = moves[int(name)][tuple(a in lead for a in others_lead)]
                values = move_units(values, other, others_lead, move, flag)
        return units_last(values, axis, lead)

    wide = jnp.promote_types(leaf.dtype, jnp.float32)
    runs = [
        read(values, block, axis, lead)
        for values, block in blocks(leaf.astype(wide), axes)
        for axis, lead in places_of(block, label, dict(parents))
        if block.origins[axis] == number
    ]
    entries = real_samples(jnp.concatenate(runs))
    return centred(entries.reshape(len(entries), *apart, -1))
