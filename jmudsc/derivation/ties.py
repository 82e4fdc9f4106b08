"""Ties: which equations find positions among entries that may be equal.

One pass over the program follows which values are generic (`terms.genericity`), by the
records of the primitives; a loop is passed over until nothing changes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from jmudsc.derivation.program import open_jaxpr, Program, scan_operands, shape_of
from jmudsc.derivation.rules import genericity
from jmudsc.derivation.rules.primitive import Ranking
from jmudsc.derivation.rules.table import primitive_of
from jmudsc.derivation.terms.genericity import (
    Along,
    bounded,
    FLAT,
    Genericity,
    leaves_of,
    NOTHING,
    nothing,
    Sign,
    weaker,
)

# Floats with fewer bits after the point are equal too often to be taken to differ, and
# with fewer than the others even as the weights of a sum.
_FINE, _COARSE = 23, 7
_MOST_PASSES = 8


def tied(program: Program) -> frozenset[int]:
    """Find the equations whose result depends on which of equal entries is the first.

    Args:
        program: the traced model.

    Returns:
        The `id` of each equation that compares by size what may be equal.
    """
    is_ranking = any(map(_has_ranking, program.eqns))
    return follow(program)[1] if is_ranking else frozenset()


def follow(program: Program) -> tuple[dict[Any, Genericity], frozenset[int]]:
    """Follow through a program which values are generic.

    Args:
        program: the traced model. Its inputs are taken not to be zero.

    Returns:
        What is known of each value outside loops and branches, by its variable; and the
        `id` of each equation that compares by size what may be equal.
    """
    scope = {var: _of_constant(value) for var, value in program.consts.items()}
    for number, var in enumerate(program.leaves.values()):
        scope[var] = _of_leaf(var, 1 << number)
    for var in program.inputs:
        rank = len(shape_of(var))
        sign = Sign.NONZERO if _mantissa(var) is not None else Sign.UNKNOWN
        scope[var] = replace(nothing(rank), sign=sign)
    seen = _Pass(set(), len(program.leaves))
    seen.eqns(program.eqns, scope, program.outvars)
    return scope, frozenset(seen.found)


@dataclass
class _Pass:
    """A pass over the equations of a program.

    Attributes:
        found: the equations that compare what may be equal.
        leaves: how many leaves there are, those of single steps of loops included.
        steps: the leaf that stands for the slice of another, by loop and leaf.
    """

    found: set[int]
    leaves: int
    steps: dict[tuple[int, int], int] = field(default_factory=dict)

    def eqns(
        self,
        eqns: Sequence[Any],
        scope: dict[Any, Genericity],
        outvars: Iterable[Any],
    ) -> None:
        used = {id(var) for eqn in eqns for var in eqn.invars} | set(map(id, outvars))
        for eqn in eqns:
            ins = [_read(scope, var) for var in eqn.invars]
            ranks = primitive_of(eqn).ranks
            if ranks is not None and _may_tie(eqn, ranks(eqn), ins, used):
                self.found.add(id(eqn))
            for var, out in zip(eqn.outvars, self.step(eqn, ins), strict=True):
                scope[var] = _in_type_of(var, out)

    def step(self, eqn: Any, ins: list[Genericity]) -> list[Genericity]:
        """Return what is known of the outputs of an equation."""
        if primitive_of(eqn).bodies is not None:
            match eqn.primitive.name:
                case "scan":
                    return self.scan(eqn, ins)
                case "while":
                    return self.while_(eqn, ins)
                case "cond":
                    return self.cond(eqn, ins)
        flow = primitive_of(eqn).genericity or genericity.unknown
        return flow(eqn, ins)

    def inside(self, jaxpr: Any, args: Sequence[Genericity]) -> list[Genericity]:
        body = open_jaxpr(jaxpr)
        scope = dict(zip(body.invars, args, strict=True))
        for var, const in zip(
            body.constvars, getattr(jaxpr, "consts", ()), strict=True
        ):
            scope[var] = _of_constant(const)
        self.eqns(body.eqns, scope, body.outvars)
        return [_read(scope, var) for var in body.outvars]

    def scan(self, eqn: Any, ins: list[Genericity]) -> list[Genericity]:
        """Slices of a leaf are leaves of their own: earlier steps have others."""
        count, carried = scan_operands(eqn)
        stacks = ins[count + carried :]
        fresh = {v.free: self.of_step(eqn, v.free) for v in stacks if v.is_in_place}
        consts, carry = (
            [_also_of(value, fresh) for value in values]
            for values in (ins[:count], ins[count : count + carried])
        )
        kept = leaves_of((*consts, *carry))
        steps = [_slice_of(value, fresh) for value in stacks]
        for _ in range(_MOST_PASSES):
            outs = self.inside(eqn.params["jaxpr"], [*consts, *carry, *steps])
            after = [_after_step(value, fresh, kept) for value in outs]
            new = list(map(weaker, carry, after[:carried]))
            if new == carry:
                break
            carry = new
        else:
            return self.given_up(eqn, ins)
        return [*carry, *(_stacked(value) for value in after[carried:])]

    def of_step(self, eqn: Any, leaf: int) -> int:
        """Return a leaf that stands for the slice of another at the present step."""
        key = id(eqn), leaf
        if key not in self.steps:
            self.steps[key] = 1 << self.leaves
            self.leaves += 1
        return self.steps[key]

    def while_(self, eqn: Any, ins: list[Genericity]) -> list[Genericity]:
        tests = eqn.params["cond_nconsts"]
        start = tests + eqn.params["body_nconsts"]
        leaves = leaves_of(ins)
        carry = [replace(value, leaves=leaves) for value in ins[start:]]
        for _ in range(_MOST_PASSES):
            self.inside(eqn.params["cond_jaxpr"], [*ins[:tests], *carry])
            outs = self.inside(eqn.params["body_jaxpr"], [*ins[tests:start], *carry])
            new = list(map(weaker, carry, outs))
            if new == carry:
                return carry
            carry = new
        return self.given_up(eqn, ins)

    def cond(self, eqn: Any, ins: list[Genericity]) -> list[Genericity]:
        which, *operands = ins
        first, *others = [self.inside(b, operands) for b in eqn.params["branches"]]
        for other in others:
            first = list(map(weaker, first, other))
        return [replace(v, leaves=v.leaves | which.leaves) for v in first]

    def given_up(self, eqn: Any, ins: list[Genericity]) -> list[Genericity]:
        """Take all that is compared inside to be equal."""
        self.found.update(map(id, _rankings_in(eqn)))
        return genericity.unknown(eqn, ins)


def _may_tie(
    eqn: Any, ranking: Ranking, ins: Sequence[Genericity], used: set[int]
) -> bool:
    is_used = any(id(eqn.outvars[number]) in used for number in ranking.outputs)
    keys = (ins[number].axes[ranking.axis] for number in ranking.keys)
    return is_used and not any(key.is_apart for key in keys)


def _rankings_in(eqn: Any) -> Iterable[Any]:
    """Yield the equations that compare by size, at or below one."""
    if primitive_of(eqn).ranks is not None:
        yield eqn
    for jaxpr in jex.jaxprs_in_params(eqn.params):
        for inner in open_jaxpr(jaxpr).eqns:
            yield from _rankings_in(inner)


def _has_ranking(eqn: Any) -> bool:
    return next(iter(_rankings_in(eqn)), None) is not None


def _read(scope: Mapping[Any, Genericity], var: Any) -> Genericity:
    return _of_constant(var.val) if isinstance(var, jex.Literal) else scope[var]


def _mantissa(var: Any) -> int | None:
    """Return the bits after the point of a float; None for another type."""
    dtype = var.aval.dtype
    is_float = jnp.issubdtype(dtype, jnp.floating)
    return int(jnp.finfo(dtype).nmant) if is_float else None


def _of_leaf(var: Any, leaf: int) -> Genericity:
    rank, bits = len(shape_of(var)), _mantissa(var)
    if bits is None or bits < _COARSE:
        return nothing(rank, leaf)
    axis = Along(units=leaf, is_apart=bits >= _FINE, is_joint=True)
    return Genericity((axis,) * rank, leaf, leaf, Sign.NONZERO, is_in_place=True)


def _of_constant(value: Any) -> Genericity:
    if not jnp.issubdtype(np.result_type(value), np.number):
        return nothing(np.ndim(value))
    array = np.asarray(value)
    axes = tuple(
        FLAT if array.size and (array == array.take([0], axis=n)).all() else NOTHING
        for n in range(array.ndim)
    )
    is_real = not np.iscomplexobj(array)
    sign = Sign.NONZERO if (array != 0).all() else Sign.UNKNOWN
    if is_real and (array > 0).all():
        sign = Sign.POSITIVE
    finite = np.abs(array[np.isfinite(array)])
    largest = float(finite.max(initial=0))
    return Genericity(axes, sign=sign, size=bounded(largest or 1.0))


def _in_type_of(var: Any, value: Genericity) -> Genericity:
    """Leave out what cannot be said of numbers of a narrow type."""
    bits = _mantissa(var)
    if bits is not None and bits >= _FINE:
        return value
    value = value.without_apart()
    if bits is not None and bits >= _COARSE:
        return value
    axes = tuple(replace(axis, units=0) for axis in value.axes)
    return replace(value, axes=axes, free=0, sign=Sign.UNKNOWN)


def _mask(fresh: Mapping[int, int], leaves: int) -> int:
    return leaves_of(nothing(0, new) for old, new in fresh.items() if leaves & old)


def _also_of(value: Genericity, fresh: Mapping[int, int]) -> Genericity:
    """A value of a leaf that is scanned over depends on every slice of it."""
    return replace(value, leaves=value.leaves | _mask(fresh, value.leaves))


def _slice_of(value: Genericity, fresh: Mapping[int, int]) -> Genericity:
    value = replace(value, axes=value.axes[1:])
    if not value.is_in_place:
        return _also_of(value, fresh)
    leaf = fresh[value.free]
    axes = tuple(replace(axis, units=leaf) for axis in value.axes)
    return replace(value, axes=axes, leaves=leaf, free=leaf)


def _after_step(value: Genericity, fresh: Mapping[int, int], kept: int) -> Genericity:
    """Forget the slices of a step: those of the next are others."""
    gone = 0
    for old, new in fresh.items():
        if value.leaves & new:
            value = replace(value, leaves=value.leaves | old)
        gone |= new
    axes = tuple(replace(axis, units=axis.units & ~gone) for axis in value.axes)
    leaves = value.leaves & ~(gone & ~kept)
    free = value.free & ~gone
    return replace(value, axes=axes, leaves=leaves, free=free, is_in_place=False)


def _stacked(value: Genericity) -> Genericity:
    return replace(value, axes=(NOTHING, *value.axes), free=0)
