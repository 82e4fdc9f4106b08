"""Similarity of the units of a label: Pearson correlation of activations or weights."""

import functools
import itertools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jmudsc.axes import Axis
from jmudsc.blocks import Block, blocks, placed, places_of, units_last
from jmudsc.moments import merge_moments, Moments, moments_of
from jmudsc.moves import anonymous, Move, move_units, moves_of, names_in_leaf, Parents
from jmudsc.spec import PermutationSpec, Site

Stays = tuple[bool, ...]  # for each parent of a label whether it stays in place
Orders = dict[Stays, Move]

# One name for all labels: with their own, each would be compiled anew.
_ANY = "units"

# A unit whose deviation is within this many rounding errors of its mean is constant.
_CONSTANT = 16 * np.finfo(np.float32).eps


@jax.jit
def correlation(
    mean: Float[Array, " units"], variance: Float[Array, "units units"]
) -> Float[Array, "units units"]:
    """Turn a covariance matrix into Pearson correlations.

    Args:
        mean: mean of each unit, only used to tell rounding errors from variation.
        variance: covariance of the units.

    Returns:
        Values in [-1, 1], exactly symmetric. A unit that never changes has correlation
        0 with every unit, itself included.
    """
    deviation = jnp.sqrt(jnp.diagonal(variance))
    varies = deviation > _CONSTANT * jnp.abs(mean)
    inverse = jnp.where(varies, 1 / jnp.where(varies, deviation, 1), 0)
    scaled = jnp.clip(variance * jnp.outer(inverse, inverse), -1, 1)
    return (scaled + scaled.T) / 2


def activation_similarity(moments: Moments) -> Float[np.ndarray, "stacked stacked"]:
    """Correlate the activations of the stacked units of all models.

    Pearson correlation over all samples (Li et al. 2016, arXiv:1511.07543, section
    3.1).

    Args:
        moments: of one label, from `collect`.

    Returns:
        Values in [-1, 1]; a unit that never changes has 0 with every unit.
    """
    covariance = moments.comoment / moments.count
    return np.asarray(correlation(moments.mean, covariance))


def weight_similarity(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, ArrayLike]],
    assignment: Mapping[str, np.ndarray],
    label: str,
) -> Float[np.ndarray, "stacked stacked"] | None:
    """Correlate the weight vectors of the stacked units of all models.

    A unit's weight vector is the concatenation of its slices at every site of the
    label, incoming and outgoing, norm scales and biases included, running statistics
    left out. Before that, every other axis of those leaves is brought to the merged
    order by the current assignment (Xu et al. 2024, arXiv:2403.01753, section 3.2):
    units of an axis that is summed over are averaged, units of any other are summed.
    That is the reverse of what the merge itself does, makes a difference for zip only,
    and was chosen by measurement (docs/method.md).

    Args:
        spec: the permutation spec.
        models: per model, leaf path -> array.
        assignment: the current one, label -> `int32[models, *parent units, units]`.
        label: the label to compare.

    Returns:
        Values in [-1, 1]; None if the label is only on running statistics.
    """
    total: dict[str, Moments] = {}
    for site in spec.labels[label].sites:
        if site.path in spec.statistics:
            continue
        units = _site_units(spec, models, assignment, label, site)
        if units:
            seen = moments_of(units)
            total = merge_moments(total, seen) if total else seen
    if not total:
        return None
    return activation_similarity(total[_ANY])


def _site_units(
    spec: PermutationSpec,
    models: Sequence[Mapping[str, ArrayLike]],
    assignment: Mapping[str, np.ndarray],
    label: str,
    site: Site,
) -> list[dict[str, jax.Array]]:
    """Read the slices of the units of a label at one site, in every model.

    There are none where something nested in the label is on the leaf too.
    """
    names = names_in_leaf(spec, site.path)
    axes, parents = anonymous(spec, site.path, names)
    shares = (1 / len(models),) * len(models)
    moves = {name: moves_of(assignment[name], shares) for name in names}
    still = spec.labels[label].parents
    read = functools.partial(
        _read_units,
        axes=axes,
        parents=parents,
        summed=tuple((site.path, n) not in spec.consumed for n in range(len(axes))),
        label=str(names.index(label)),
        number=site.axis,
    )
    found = [
        read(
            model[site.path],
            [_by_order(spec, moves, assignment, name, still, i) for name in names],
        )
        for i, model in enumerate(models)
    ]
    return [{_ANY: units} for units in found if units is not None]


def _by_order(
    spec: PermutationSpec,
    moves: Mapping[str, list[Move]],
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
        stays: _in_order(spec, moves[name][model], assignment, name, stays, model)
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
    jax.jit, static_argnames=("axes", "parents", "summed", "label", "number")
)
def _read_units(
    leaf: jax.Array,
    moves: list[Orders],
    axes: tuple[Axis, ...],
    parents: Parents,
    summed: tuple[bool, ...],
    label: str,
    number: int,
) -> Float[Array, "entries units"] | None:
    """Return the slices at axis `number`, every other axis in the merged order."""

    def read(values: jax.Array, block: Block, axis: int, lead: tuple[int, ...]):
        for other, others_lead, name in placed(block, dict(parents)):
            if other not in (axis, *lead):
                flag = summed[block.origins[other]]
                move = moves[int(name)][tuple(a in lead for a in others_lead)]
                values = move_units(values, other, others_lead, move, flag)
        return units_last(values, axis, lead)

    runs = [
        read(values, block, axis, lead)
        for values, block in blocks(leaf.astype(jnp.float32), axes)
        for axis, lead in places_of(block, label, dict(parents))
        if block.origins[axis] == number
    ]
    if not runs:
        return None
    entries = jnp.concatenate(runs)
    return entries.reshape(len(entries), -1)
