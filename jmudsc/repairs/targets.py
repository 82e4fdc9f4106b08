"""Targets: what the parents make of some samples, brought to the merged order."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.reordering.blocks import Block, map_blocks, placed, Values
from jmudsc.reordering.combine import check_assignment
from jmudsc.reordering.transport import (
    Move,
    move_units,
    moves_of,
    OuterLabels,
)
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.mixing import along, Weights
from jmudsc.sharding import on_device
from jmudsc.spec.axes import Axis
from jmudsc.spec.check_variables import check_covers

Leaves = dict[str, Any]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("leaves", "shares", "moves", "alone"),
    meta_fields=("nesting",),
)
@dataclass(frozen=True)
class Targets:
    """What a merged network should do: the parents, and where their units went.

    Attributes:
        leaves: the leaves of each parent.
        shares: the share of each, summing to 1.
        moves: label -> how its units move, for each parent.
        alone: label -> how its units would move if there were no other parent.
        nesting: every label with its outer labels.
    """

    leaves: Sequence[Leaves]
    shares: tuple[ArrayLike, ...]
    moves: Mapping[str, Sequence[Move]]
    alone: Mapping[str, Sequence[Move]]
    nesting: OuterLabels

    def of_layer(
        self, axes: Sequence[Axis], first: int | None = None
    ) -> tuple["Targets", tuple[Axis, ...]]:
        """Return as much as a layer needs, to be handed to a compiled function.

        Labels have numbers for names, so that layers of one kind share the function.

        Args:
            axes: of what the layer makes.
            first: the parent to come first; None for their order.

        Returns:
            The targets, without leaves, and what the axes are in them.
        """
        names = self._names(axes)
        new = {name: str(number) for number, name in enumerate(names)}
        outer = dict(self.nesting)
        order = sorted(range(len(self.shares)), key=lambda n: (n != first, n))
        moves, alone = (
            {new[n]: [each[n][parent] for parent in order] for n in names}
            for each in (self.moves, self.alone)
        )
        shares = tuple(self.shares[parent] for parent in order)
        nesting = tuple((new[n], tuple(new[o] for o in outer[n])) for n in names)
        renamed = tuple(axis.renamed(new) for axis in axes)
        return Targets((), shares, moves, alone, nesting), renamed

    def within(self, at: Mapping[str, int]) -> "Targets":
        """Return the targets at one position of some outer labels.

        Args:
            at: outer label -> the position.

        Returns:
            Targets in which the labels are nested in no label of `at` any more.
        """
        if not at:
            return self
        outer = dict(self.nesting)
        moves, alone = (
            {
                name: [_picked(move, outer[name], at) for move in rows]
                for name, rows in each.items()
            }
            for each in (self.moves, self.alone)
        )
        nesting = tuple(
            (name, tuple(o for o in parents if o not in at))
            for name, parents in self.nesting
        )
        return replace(self, moves=moves, alone=alone, nesting=nesting)

    def mean(self, values: Sequence[Values], axes: Sequence[Axis]) -> Values:
        """Average a value of all parents in the merged order, by their shares."""
        moved = [
            share * self._moved(value, axes, self.moves, model)
            for model, (share, value) in enumerate(
                zip(self.shares, values, strict=True)
            )
        ]
        return functools.reduce(operator.add, moved)

    def target(
        self,
        value_of: Callable[[int], jax.Array],
        axes: Sequence[Axis],
        owner: int | None,
        shares: Weights | None = None,
    ) -> jax.Array:
        """Return what a merged network should make of some samples.

        Args:
            value_of: what a parent makes of them, by its number.
            axes: of the values.
            owner: the parent whose task the samples are from; None if not known.
            shares: per parent its share in each sample, in the place of an owner.

        Returns:
            In the merged order the values of the owner, each unit the mean of those of
            its units that went there; where none did, and without an owner, `mean`.
            With shares the mean by these of what each would be as an owner.
        """
        if shares is not None:
            return self._mixed(value_of, axes, shares)
        if owner is None:
            return self.mean([value_of(n) for n in range(len(self.shares))], axes)
        value = value_of(owner)
        own = self._moved(value, axes, self.alone, owner)
        moves = [self.alone[name][owner] for name in self._names(axes)]
        if all(move.scale is None for move in moves):  # one-to-one: no unit is without
            return own
        present = self._moved(jnp.ones_like(value), axes, self.alone, owner) > 0
        return jnp.where(present, own, self.target(value_of, axes, None))

    def _mixed(
        self,
        value_of: Callable[[int], jax.Array],
        axes: Sequence[Axis],
        shares: Weights,
    ) -> jax.Array:
        """Average what all parents make of samples, by shares of each sample."""
        values = [value_of(number) for number in range(len(self.shares))]
        parts, weights = [], []
        for number, value in enumerate(values):
            share = along(shares[number], value.shape)
            ones = jnp.ones_like(value)
            present = self._moved(ones, axes, self.alone, number) > 0
            parts.append(self._moved(value, axes, self.alone, number) * share * present)
            weights.append(share * present)
        total = functools.reduce(operator.add, weights)
        mixed = functools.reduce(operator.add, parts) / jnp.where(total > 0, total, 1)
        return jnp.where(total > 0, mixed, self.mean(values, axes))

    def _names(self, axes: Sequence[Axis]) -> list[str]:
        """Return the labels of some axes, and after them their outer labels."""
        used = dict.fromkeys(name for axis in axes for name in axis.labels())
        outer = dict(self.nesting)
        return list(dict.fromkeys([*used, *(o for n in used for o in outer[n])]))

    def _moved(
        self,
        array: Values,
        axes: Sequence[Axis],
        moves: Mapping[str, Sequence[Move]],
        model: int,
    ) -> Values:
        """Bring a value of one parent to the merged order, shared units averaged."""
        outer = dict(self.nesting)

        def visit(values: Values, block: Block) -> Values:
            for axis, lead, name in placed(block, outer):
                move = moves[name][model]
                values = move_units(values, axis, lead, move, consumed=False)
            return values

        return map_blocks(array, axes, visit)


def _picked(move: Move, outer: Sequence[str], at: Mapping[str, int]) -> Move:
    """Pick how units move in one unit of some of their outer labels."""
    place = tuple(at.get(name, slice(None)) for name in outer)
    scale = None if move.scale is None else np.asarray(move.scale)[place]
    return Move(np.asarray(move.index)[place], scale)


def targets_of(where: str, merger: Merger) -> Targets:
    """Put together what it takes to bring values of the parents to the merged order.

    Args:
        where: the caller, named in errors.
        merger: how the network was merged.

    Returns:
        The targets.

    Raises:
        ValueError: if the spec or the assignment does not fit the parents.
    """
    spec, shares = merger.spec, merger.shares
    check_covers(where, spec, paths.flatten(merger.parents[0]))
    check_assignment(where, spec, merger.assignment, len(merger.parents))
    rows = {name: np.asarray(merger.assignment[name]) for name in spec.labels}
    return Targets(
        leaves=[arrays(parent) for parent in merger.parents],
        shares=shares,
        moves={name: moves_of(row, shares) for name, row in rows.items()},
        alone={
            name: [moves_of(r[None], (1.0,))[0] for r in row]
            for name, row in rows.items()
        },
        nesting=tuple((name, label.parents) for name, label in spec.labels.items()),
    )


def arrays(variables: PyTree) -> Leaves:
    """Return the leaves of variables as JAX arrays, by path."""
    return {path: on_device(leaf) for path, leaf in paths.flatten(variables).items()}
