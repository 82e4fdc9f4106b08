"""Linear algebra: decompositions, solvers and transforms of whole matrices.

They do not commute with permutations of rows or columns (of a decomposition the signs
and the order change, where there is a choice), so that the axes of the matrices are
fixed. What they are mapped over stays permutable.

Operations are counted as in Golub & Van Loan, Matrix Computations, 4th edition: LU
2n^3/3 (3.2), Cholesky n^3/3 (4.2), triangular systems n^2 a column (3.1), QR by
Householder 2n^2(m - n/3) and the same again for Q (5.2), symmetric eigenproblems with
vectors 9n^3 (8.3), singular values 4mn^2 - 4n^3/3, with both bases
4nm^2 + 8mn^2 + 9n^3 (8.6).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jmudsc.derivation.rules.common import (
    BY_POSITION,
    by_position,
    negligible,
    pin_all,
    shape_of,
)
from jmudsc.derivation.rules.ordering import IN_ORDER
from jmudsc.derivation.rules.primitive import AxisMap, AxisTerms, Cost, Primitive, Rule
from jmudsc.derivation.terms.axis_terms import Terms


def fixed_along_last(count: int) -> Rule:
    """Return the rule that fixes the last axes of all operands, and carries the others.

    Args:
        count: how many last axes of the first operand are not mapped over.
    """

    def rule(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
        batch = len(ins[0]) - count
        reason = BY_POSITION.format(eqn.primitive.name)
        pin_all(terms, ins[0][batch:], reason)
        return [
            ins[0][:batch] + [terms.fixed(n, reason) for n in shape_of(out)[batch:]]
            for out in eqn.outvars
        ]

    return rule


def mapped_over(count: int) -> AxisMap:
    """Return where axes come out that are not among the last ones."""

    def where(eqn: Any, number: int) -> Mapping[int, int]:
        rank = len(shape_of(eqn.invars[number]))
        return {axis: axis for axis in range(rank - count)}

    return where


def svd(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """Singular values alone do not depend on the order of rows and columns."""
    if eqn.params["compute_uv"] or eqn.params["subset_by_index"] is not None:
        return fixed_along_last(2)(terms, eqn, ins)
    return [[*ins[0][:-2], terms.fixed(shape_of(eqn.outvars[0])[-1], IN_ORDER)]]


def triangular_solve(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The right-hand sides are solved for one by one: they may be permuted."""
    matrix, sides = ins
    along = -2 if eqn.params["left_side"] else -1
    for axis, other in zip(matrix[:-2], sides[:-2], strict=True):
        terms.unify(axis, other)
    pin_all(terms, matrix[-2:], BY_POSITION.format(eqn.primitive.name))
    out = list(sides)
    out[along] = by_position(terms, sides[along], terms.size(sides[along]), eqn)
    return [out]


def _sides_solved(eqn: Any, number: int) -> Mapping[int, int]:
    rank = len(shape_of(eqn.invars[number]))
    batch = {axis: axis for axis in range(rank - 2)}
    side = rank - 1 if eqn.params["left_side"] else rank - 2
    return batch | {side: side} if number == 1 else batch


def fft(terms: Terms, eqn: Any, ins: list[AxisTerms]) -> list[AxisTerms]:
    """The axes transformed are fixed."""
    shape = shape_of(eqn.outvars[0])
    kept = len(shape) - len(eqn.params["fft_lengths"])
    pairs = zip(ins[0][kept:], shape[kept:], strict=True)
    return [ins[0][:kept] + [by_position(terms, axis, n, eqn) for axis, n in pairs]]


def _solved(params: dict[str, Any], ins: Sequence[Any]) -> tuple[Any, Sequence[Any]]:
    """The solver alone: the other programs of the equation are for derivatives."""
    lengths = params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    rest = start + lengths.solve + lengths.transpose_solve
    consts = ins[start : start + lengths.solve]
    return params["jaxprs"].solve, [*consts, *ins[rest:]]


def _of_matrices(flops: Callable[[int, int], float]) -> Callable[[Any], Cost]:
    """Return the cost of a decomposition, by rows and columns of one matrix."""

    def cost(eqn: Any) -> Cost:
        *batch, rows, columns = shape_of(eqn.invars[0])
        return Cost(round(math.prod(batch) * flops(rows, columns)))

    return cost


def _cost_of_svd(eqn: Any) -> Cost:
    *batch, rows, columns = shape_of(eqn.invars[0])
    short, long = sorted((rows, columns))
    values = 4 * long * short**2 - 4 * short**3 / 3
    bases = 4 * long**2 * short + 8 * long * short**2 + 9 * short**3
    one = bases if eqn.params["compute_uv"] else values
    return Cost(round(math.prod(batch) * one))


def _cost_of_triangular_solve(eqn: Any) -> Cost:
    matrix, sides = (shape_of(var) for var in eqn.invars)
    return Cost(math.prod(sides) * matrix[-1])


def _decomposition(name: str, flops: Callable[[int, int], float]) -> Primitive:
    return Primitive(
        name,
        rule=fixed_along_last(2),
        axis_map=mapped_over(2),
        cost=_of_matrices(flops),
    )


PRIMITIVES = (
    _decomposition("cholesky", lambda n, _: n**3 / 3),
    _decomposition("eigh", lambda n, _: 9 * n**3),
    _decomposition("lu", lambda m, n: min(m, n) ** 2 * (max(m, n) - min(m, n) / 3)),
    _decomposition("qr", lambda m, n: 4 * min(m, n) ** 2 * (max(m, n) - min(m, n) / 3)),
    Primitive("svd", rule=svd, axis_map=mapped_over(2), cost=_cost_of_svd),
    Primitive(
        "lu_pivots_to_permutation",
        rule=fixed_along_last(1),
        axis_map=mapped_over(1),
        cost=negligible,
    ),
    Primitive(
        "triangular_solve",
        rule=triangular_solve,
        axis_map=_sides_solved,
        cost=_cost_of_triangular_solve,
    ),
    Primitive("fft", rule=fft),
    Primitive("custom_linear_solve", call=_solved),
)
