"""Parents: the networks that were merged, and their values in the merged order."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.reordering.blocks import Block, map_blocks, placed
from jmudsc.reordering.combine import check_assignment, shares_of
from jmudsc.reordering.transport import (
    Move,
    move_units,
    moves_of,
    OuterLabels as Nesting,
)
from jmudsc.spec.axes import Axis
from jmudsc.spec.check_variables import check_covers
from jmudsc.spec.permutation_spec import PermutationSpec

Leaves = dict[str, Any]


@dataclass(frozen=True)
class Parents:
    """The networks that were merged, and how their units come to the merged order.

    Attributes:
        leaves: the leaves of each.
        shares: their shares, summing to 1.
        moves: per label one move each.
        alone: the same, as if there were no other model.
        nesting: label -> the labels it is nested in.
    """

    leaves: Sequence[Leaves]
    shares: tuple[float, ...]
    moves: Mapping[str, Sequence[Move]]
    alone: Mapping[str, Sequence[Move]]
    nesting: Mapping[str, tuple[str, ...]]

    def mean(self, values: Sequence[jax.Array], axes: Sequence[Axis]) -> jax.Array:
        """Average a value of all models in the merged order, by their shares."""
        moved = [
            np.float32(share) * self._moved(value, axes, self.moves, model)
            for model, (share, value) in enumerate(
                zip(self.shares, values, strict=True)
            )
        ]
        return functools.reduce(jnp.add, moved)

    def target(
        self,
        value_of: Callable[[int], jax.Array],
        axes: Sequence[Axis],
        owner: int | None,
    ) -> jax.Array:
        """Return what a merged network should make of some samples.

        Args:
            value_of: what a model makes of them, by its number.
            axes: of the values.
            owner: the model whose task the samples are from; None for none.

        Returns:
            In the merged order the values of the owner, each unit the mean of those of
            its units that went there; where none did, and without an owner, `mean`.
        """
        if owner is None:
            return self.mean([value_of(n) for n in range(len(self.leaves))], axes)
        value = value_of(owner)
        own = self._moved(value, axes, self.alone, owner)
        moves = [self.alone[name][owner] for name in self._names(axes)]
        if all(move.scale is None for move in moves):  # one-to-one: no unit is without
            return own
        present = self._moved(jnp.ones_like(value), axes, self.alone, owner) > 0
        return jnp.where(present, own, self.target(value_of, axes, None))

    def _names(self, axes: Sequence[Axis]) -> list[str]:
        """Return the labels of some axes, and after them those they are nested in."""
        used = dict.fromkeys(name for axis in axes for name in axis.labels())
        return list(dict.fromkeys([*used, *(p for n in used for p in self.nesting[n])]))

    def _moved(
        self,
        array: jax.Array,
        axes: Sequence[Axis],
        moves: Mapping[str, Sequence[Move]],
        model: int,
    ) -> jax.Array:
        """Bring a value of one model to the merged order, units shared averaged."""
        names = self._names(axes)
        new = {name: str(number) for number, name in enumerate(names)}
        nesting = tuple((new[n], tuple(new[p] for p in self.nesting[n])) for n in names)
        axes = tuple(axis.renamed(new) for axis in axes)
        return _moved(array, [moves[n][model] for n in names], axes, nesting)


def parents_of(
    where: str,
    spec: PermutationSpec,
    models: Sequence[PyTree],
    assignment: Mapping[str, np.ndarray],
    weights: Sequence[float] | None,
) -> Parents:
    """Put together what it takes to bring values of the parents to the merged order.

    Args:
        where: the caller, named in errors.
        spec: the permutation spec.
        models: the variables of each model.
        assignment: label -> `int32[models, *parent units, units]`.
        weights: the share of each model; None for equal shares.

    Returns:
        The parents.

    Raises:
        ValueError: if the spec, the assignment or the weights do not fit the models.
    """
    check_covers(where, spec, paths.flatten(models[0]))
    shares = shares_of(where, weights, len(models))
    check_assignment(where, spec, assignment, len(models))
    rows = {name: np.asarray(assignment[name]) for name in spec.labels}
    return Parents(
        leaves=[arrays(model) for model in models],
        shares=shares,
        moves={name: moves_of(row, shares) for name, row in rows.items()},
        alone={
            name: [moves_of(r[None], (1.0,))[0] for r in row]
            for name, row in rows.items()
        },
        nesting={name: label.parents for name, label in spec.labels.items()},
    )


def arrays(variables: PyTree) -> Leaves:
    """Return the leaves of variables as JAX arrays, by path."""
    return {path: jnp.asarray(leaf) for path, leaf in paths.flatten(variables).items()}


@functools.partial(jax.jit, static_argnames=("axes", "nesting"))
def _moved(
    array: jax.Array, moves: list[Move], axes: tuple[Axis, ...], nesting: Nesting
) -> jax.Array:
    def visit(values: jax.Array, block: Block) -> jax.Array:
        for axis, lead, name in placed(block, dict(nesting)):
            values = move_units(values, axis, lead, moves[int(name)], consumed=False)
        return values

    return map_blocks(array, axes, visit)
