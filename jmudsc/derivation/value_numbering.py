"""Value numbering: which values of a program are equal because they are computed alike.

An index is often worked out anew for each array that it picks from. Two values get the
same number if the same primitive made them, with the same parameters, of values with
the same numbers.
"""

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp

from jmudsc.derivation.rules.table import primitive_of
from jmudsc.derivation.terms.values import Number


class Numbers:
    """Numbers for the values of one program."""

    def __init__(self) -> None:
        self._next = itertools.count()
        self._known: dict[Hashable, Number] = {}
        self._columns: dict[Number, tuple[Number, ...]] = {}

    def new(self) -> Number:
        """Return a number for a value that equals no other."""
        return Number(next(self._next))

    def literal(self, value: Any) -> Number:
        """Return the number of a scalar constant."""
        return self._number(("literal", repr(value)))

    def outputs(self, eqn: jex.JaxprEqn, ins: Sequence[Number]) -> list[Number]:
        """Return the numbers of the outputs of an equation.

        Args:
            eqn: an equation; only integers and booleans, as indices are made of, are
                compared, and only where there is no program inside.
            ins: the numbers of its operands.

        Returns:
            One number per output.
        """
        if not _is_whole(eqn.outvars[-1]) or any(jex.jaxprs_in_params(eqn.params)):
            return [self.new() for _ in eqn.outvars]
        made = eqn.primitive.name, repr(sorted(eqn.params.items())), tuple(ins)
        found = [self._number((*made, place)) for place in range(len(eqn.outvars))]
        joins = primitive_of(eqn).joins_columns
        if joins is not None and joins(eqn):
            self._columns[found[0]] = tuple(ins)
        return found

    def columns(self, index: Number, count: int) -> list[Number]:
        """Return the numbers of what an index value has side by side on its last axis.

        Args:
            index: the number of an index value.
            count: how many columns it has.

        Returns:
            One number per column.
        """
        if count == 1:
            return [index]
        known = self._columns.get(index, ())
        if len(known) == count:
            return list(known)
        return [self._number(("column", index, place)) for place in range(count)]

    def runs(self, sizes: Number) -> Number:
        """Return the number of the index value that says in which run each row is.

        Args:
            sizes: the number of the value that holds the lengths of the runs.

        Returns:
            A number.
        """
        return self._number(("runs", sizes))

    def _number(self, made: Hashable) -> Number:
        if made not in self._known:
            self._known[made] = self.new()
        return self._known[made]


def _is_whole(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.integer) or var.aval.dtype == bool
