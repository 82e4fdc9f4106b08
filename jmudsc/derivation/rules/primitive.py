"""Primitive: all that is known of one JAX primitive, in one record.

Every facet is a small function of an equation, or None where nothing is known. Unknown
is always the safe side: axes are fixed, positions pin the axis that they are along, an
equation is no contraction, a cost is reported as unknown.
"""

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.genericity import Genericity
from jmudsc.derivation.terms.values import Columns, Picked, Tag, Value

AxisTerms = list[Term]  # one term per axis of a value
Known = Tag | Columns | None  # what the entries of a value are positions of
Outcome = tuple[list[AxisTerms], list[Known]]

# (terms, eqn, axes of each operand) -> axes of each output.
Rule = Callable[[Terms, Any, list[AxisTerms]], list[AxisTerms]]
# (the rule, terms, eqn, axes of each operand, what each operand holds positions of)
# -> the same two of each output.
Positions = Callable[[Rule, Terms, Any, list[AxisTerms], Sequence[Known]], Outcome]
# (eqn, number of an operand) -> axis of that operand: the same axis of the output.
AxisMap = Callable[[Any, int], Mapping[int, int]]
# (eqn) -> per operand the axes summed over; None if this equation is no contraction.
Summed = Callable[[Any], tuple[tuple[int, ...], tuple[int, ...]] | None]
# (terms, eqn, operands, outputs, what was picked) -> values on which axes meet; None
# if this equation is like one of which nothing is known.
Meets = Callable[
    [Terms, Any, Sequence[Value], Sequence[Value], Picked], list[Value] | None
]
# (eqn, what is known of the entries of each operand) -> the same of each output.
Flow = Callable[[Any, Sequence[Genericity]], list[Genericity]]
# (params, operands) -> the jaxpr that is run, and its operands.
Call = Callable[[dict[str, Any], Sequence[Any]], tuple[Any, Sequence[Any]]]


@dataclass(frozen=True)
class Lookup:
    """An index value says which one position of an axis is taken.

    Attributes:
        source: the operand that is picked from.
        axis: of that operand.
        index: the operand that holds the index values.
        column: which column of the last axis of the index values it is.
        columns: how many columns they have.
        along: for each axis of the index value the axis of the output along which it
            varies; None where it has one position.
        is_run: whether the operand `index` holds the lengths of runs of rows, so that
            the index value is the number of the run that a row is in.
    """

    source: int
    axis: int
    index: int
    column: int = 0
    columns: int = 1
    along: tuple[int | None, ...] = ()
    is_run: bool = False


@dataclass(frozen=True)
class Ranking:
    """Entries are compared by size, and of equal ones the first leads.

    Attributes:
        keys: the operands that are compared.
        axis: of them, along which.
        outputs: those that depend on which of equal entries leads.
    """

    keys: tuple[int, ...]
    axis: int
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Cost:
    """What one equation takes.

    Attributes:
        flops: operations, two for each product that is added up; 0 for what a compiler
            fuses into its neighbours.
        grams: operations of the Gram matrices of what goes into a contraction, and of
            that with what comes out.
    """

    flops: int = 0
    grams: int = 0


@dataclass(frozen=True)
class Bodies:
    """How often the programs inside an equation are run.

    Attributes:
        steps: how many times each; None if that depends on values.
        is_choice: whether only one of them is run.
    """

    steps: int | None = 1
    is_choice: bool = False


class Moves(enum.Enum):
    """What becomes of the entries of the only array operand, none of them computed on.

    Attributes:
        KEPT: each stays in its place (a cast, a copy).
        LAID_OUT: all are there; their axes are laid out anew, or repeated.
        TAKEN: some are left out, or they are in another order.
    """

    KEPT = enum.auto()
    LAID_OUT = enum.auto()
    TAKEN = enum.auto()


class Arithmetic(enum.Enum):
    """What is computed, entry by entry, for modules that look for a formula."""

    SUM = enum.auto()
    DIFFERENCE = enum.auto()
    PRODUCT = enum.auto()
    QUOTIENT = enum.auto()
    ROOT = enum.auto()
    LOWER_BOUND = enum.auto()


@dataclass(frozen=True)
class Primitive:
    """What is known of a primitive; None where nothing is.

    Attributes:
        name: the name that equations have it under.
        rule: what it does to axes: ties, drops, regroups or fixes them. Unknown: all
            axes that it touches are fixed.
        positions: what it does to values that are positions along an axis. Unknown: the
            axis is fixed.
        axis_map: which axis of an operand comes out as which axis of every output, not
            mixed with another. Unknown: none.
        lookups: where it takes one position of an axis by an index value. Unknown: it
            does not.
        summed: which axes of its two operands it multiplies and sums over. Unknown: it
            is no contraction.
        meets: the axes that it brings together on no value of the program. Unknown:
            those that go in and come out as others.
        genericity: what becomes of entries of which no two are equal. Unknown: some
            may be, after it.
        ranks: which entries it compares by size. Unknown: none.
        entries: whether it only moves entries. Unknown: it computes new ones.
        arithmetic: what it computes entry by entry. Unknown: no part of a formula.
        joins_columns: whether an equation puts index values of one column each side by
            side. Unknown: it does not.
        cost: how much it computes. Unknown: reported as such.
        bodies: how often it runs the programs inside it. Unknown: once each.
        call: the program that it only wraps, put in its place. Unknown: it is kept.
        without_devices: the same under `vmap`, for one that exists only inside
            `shard_map`. Unknown: it is evaluated as it is.
    """

    name: str
    rule: Rule | None = None
    positions: Positions | None = None
    axis_map: AxisMap | None = None
    lookups: Callable[[Any], tuple[Lookup, ...]] | None = None
    summed: Summed | None = None
    meets: Meets | None = None
    genericity: Flow | None = None
    ranks: Callable[[Any], Ranking] | None = None
    entries: Moves | None = None
    arithmetic: Arithmetic | None = None
    joins_columns: Callable[[Any], bool] | None = None
    cost: Callable[[Any], Cost] | None = None
    bodies: Callable[[Any], Bodies] | None = None
    call: Call | None = None
    without_devices: Callable[..., Any] | None = None
