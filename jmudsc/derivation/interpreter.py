"""Interpreter: gives every axis of every value of a program a term, in one pass.

What is known of single primitives is in `rules`, one record each; here is what is done
with it, equation by equation, and what has a program inside: loops and branches.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax.extend.core as jex
import numpy as np

from jmudsc.derivation import index_order
from jmudsc.derivation.interactions import interactions
from jmudsc.derivation.program import open_jaxpr, Program, scan_operands, shape_of
from jmudsc.derivation.rules.common import BY_POSITION, pin_all
from jmudsc.derivation.rules.positions import forget
from jmudsc.derivation.rules.primitive import AxisTerms
from jmudsc.derivation.rules.table import apply_rule, contraction, primitive_of
from jmudsc.derivation.terms.axis_terms import Term, Terms
from jmudsc.derivation.terms.values import Number, Pick, Picks, Place, Value
from jmudsc.derivation.ties import tied
from jmudsc.derivation.value_numbering import Numbers

MEETS_INPUT = "meets an input of the network"


@dataclass(frozen=True)
class Occurrence:
    """A value with where it is.

    Attributes:
        value: the value.
        place: where; None inside a branch or a `while` loop, where it cannot be read.
        around: the axes of the loops around it: it has a copy for every step.
    """

    value: Value
    place: Place | None
    around: tuple[Term, ...]

    def picks_on(self, axis: int) -> frozenset[Pick]:
        """The picks of one axis, where those of the loops around it come first."""
        own = axis - len(self.around)
        return self.value.picks_on(own) if own >= 0 else frozenset()

    def is_apart(self, axis: int) -> bool:
        """Whether units do not go with others of the same number on that axis."""
        return axis - len(self.around) in self.value.apart


@dataclass(frozen=True)
class Contraction:
    """An equation that sums products over axes.

    Attributes:
        eqn: a `dot_general`, `ragged_dot_general` or `conv_general_dilated`.
        operands: the two that are multiplied.
        summed: per operand the axes summed over.
    """

    eqn: Any
    operands: tuple[Occurrence, Occurrence]
    summed: tuple[AxisTerms, AxisTerms]


@dataclass(frozen=True)
class Walk:
    """A program with a term for every axis of every value.

    Attributes:
        terms: the arena of the terms.
        leaf_axes: leaf path -> one term per axis.
        values: every value, in program order.
        contractions: every contraction, in program order.
        met: the axes that equations bring together, as if on values.
        data: the variables that depend on the batch.
        numbers: what tells which values are equal.
        places: where values can be read, by number.
        picked: a term that an index picks from, by the number of the index and by size.
        tied: the equations that compare by size what may be equal, by their `id`.
    """

    terms: Terms
    leaf_axes: Mapping[str, AxisTerms]
    values: list[Occurrence] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    met: list[Occurrence] = field(default_factory=list)
    data: set[Any] = field(default_factory=set)
    numbers: Numbers = field(default_factory=Numbers)
    places: dict[Number, Place] = field(default_factory=dict)
    picked: dict[tuple[Number, int], Term] = field(default_factory=dict)
    tied: frozenset[int] = frozenset()


def walk(program: Program, terms: Terms, leaf_axes: Mapping[str, AxisTerms]) -> Walk:
    """Give every axis of every value a term, tied and fixed by what the program does.

    Args:
        program: the traced model.
        terms: the arena.
        leaf_axes: leaf path -> one term per axis, what is known to begin with.

    Returns:
        The walk.
    """
    result = Walk(terms, leaf_axes, tied=tied(program))
    scope: dict[Any, Value] = {}
    for path, var in program.leaves.items():
        scope[var] = Value(leaf_axes[path])
    for var in program.inputs:
        axes = [terms.fixed(size, MEETS_INPUT) for size in shape_of(var)]
        scope[var] = Value(axes, is_data=True)
    for var, value in program.consts.items():
        scope[var] = _constant(terms, value)
    walker = _Walker(result, scope, ())
    walker.enter()
    walker.eqns(program.eqns)
    for var in program.outvars:
        value = walker.of(var)
        forget(terms, value.tag, "an output of the network")
        pin_all(terms, value.axes, "meets an output of the network")
    _merge_stray_members(result)
    return result


@dataclass(frozen=True)
class _Walker:
    """A walk through the equations of one jaxpr.

    Attributes:
        result: what is filled.
        scope: the values of the jaxpr's variables.
        loops: the loops around, None where values cannot be read.
        around: the axes of those loops.
    """

    result: Walk
    scope: dict[Any, Value]
    loops: tuple[Any, ...] | None
    around: tuple[Term, ...] = ()

    def eqns(self, eqns: Iterable[jex.JaxprEqn]) -> None:
        for eqn in eqns:
            ins = [self.of(var) for var in eqn.invars]
            for var, value in zip(eqn.outvars, self.step(eqn, ins), strict=True):
                self.bind(var, value)

    def step(self, eqn: Any, ins: list[Value]) -> list[Value]:
        """Return the values of the outputs of an equation.

        Control flow is told by its name: how operands go into the programs inside and
        around their loops is the same for no other primitive.
        """
        if primitive_of(eqn).bodies is not None:
            match eqn.primitive.name:
                case "scan":
                    return self.scan(eqn, ins)
                case "while":
                    return self.while_(eqn, ins)
                case "cond":
                    return self.cond(eqn, ins)
        return self.primitive(eqn, ins)

    def of(self, var: Any) -> Value:
        """Return the value of a variable or a literal."""
        if isinstance(var, jex.Literal):
            number = self.result.numbers.literal(var.val)
            return replace(_constant(self.result.terms, var.val), number=number)
        return self.scope[var]

    def enter(self) -> None:
        """Bind what is known when the jaxpr is entered."""
        for var, value in list(self.scope.items()):
            self.bind(var, value)

    def bind(self, var: Any, value: Value) -> None:
        """Give a variable its value, and a number to the value if it has none."""
        if value.number < 0:
            value = replace(value, number=self.result.numbers.new())
        here = self.occurrence(var, value)
        if here.place is not None:
            self.result.places.setdefault(value.number, here.place)
        if value.is_data:
            self.result.data.add(var)
        self.scope[var] = value
        self.result.values.append(here)

    def occurrence(self, var: Any, value: Value) -> Occurrence:
        place = None if self.loops is None else Place(var, self.loops)
        return Occurrence(value, place, self.around)

    def primitive(self, eqn: Any, ins: list[Value]) -> list[Value]:
        """Follow an equation that runs no program, in these steps.

        1. What it picks by index values is read off the operands, as they come in.
        2. The rule ties and fixes axes and says what those of the outputs are.
        3. Picks are carried to the output, and what one index picks from is tied.
        4. What the equation brings together on no value is noted, and what it sums.
        """
        result, since = self.result, len(self.result.terms)
        numbers = result.numbers.outputs(eqn, [value.number for value in ins])
        self.pin_tied(eqn, ins)
        picked = index_order.picked(eqn, ins, result.numbers, result.places)
        axes, tags = apply_rule(
            result.terms, eqn, [v.axes for v in ins], [v.tag for v in ins]
        )
        picks = index_order.after(eqn, ins, picked)
        for of_one in picks:
            self.tie_picked(of_one)
        is_data, is_picked = any(value.is_data for value in ins), _picks(eqn, ins)
        outs = [
            Value(axes, is_data, tag, number, of_one, is_picked)
            for axes, tag, number, of_one in zip(
                axes, tags, numbers, picks, strict=True
            )
        ]
        met = interactions(result.terms, eqn, ins, outs, picked, since)
        result.met.extend(Occurrence(value, None, self.around) for value in met)
        self.note_contraction(eqn, ins)
        return outs

    def pin_tied(self, eqn: Any, ins: list[Value]) -> None:
        """Fix the axis along which entries are compared that may be equal."""
        ranks = primitive_of(eqn).ranks
        if ranks is not None and id(eqn) in self.result.tied:
            found, name = ranks(eqn), f"{eqn.primitive.name} among equal ones"
            for number in found.keys:
                axis = ins[number].axes[found.axis]
                self.result.terms.pin(axis, BY_POSITION.format(name))

    def tie_picked(self, picks: Picks) -> None:
        """Tie fixed axes from which the same index picks: position by position."""
        terms = self.result.terms
        for pick in frozenset().union(*picks):
            same = pick.index, terms.size(pick.term)
            other = self.result.picked.setdefault(same, pick.term)
            if terms.reason(other) and terms.reason(pick.term):
                terms.unify(other, pick.term)

    def note_contraction(self, eqn: Any, ins: list[Value]) -> None:
        summed = contraction(eqn)
        if summed is not None:
            pairs = list(zip(eqn.invars, ins, summed, strict=False))
            left, right = (self.occurrence(var, value) for var, value, _ in pairs)
            over = [[value.axes[i] for i in axes] for _, value, axes in pairs]
            found = Contraction(eqn, (left, right), (over[0], over[1]))
            self.result.contractions.append(found)

    def scan(self, eqn: Any, ins: list[Value]) -> list[Value]:
        terms = self.result.terms
        ins = [self.plain(value, "scan") for value in ins]
        consts, carried = scan_operands(eqn)
        scanned = ins[consts + carried :]
        length = terms.leaf(eqn.params["length"])
        for value in scanned:
            terms.unify(length, value.axes[0])
        terms.pin(length, "is scanned over")
        is_data = any(value.is_data for value in ins)
        carry = [Value(v.axes, is_data) for v in ins[consts : consts + carried]]
        steps = [Value(v.axes[1:], v.is_data, is_picked=v.is_picked) for v in scanned]
        outs = self.inside(
            eqn.params["jaxpr"], [*ins[:consts], *carry, *steps], eqn, length
        )
        _tie(terms, carry, outs[:carried])
        stacked = [
            Value([length, *v.axes], v.is_data, is_picked=v.is_picked)
            for v in outs[carried:]
        ]
        return [*carry, *stacked]

    def while_(self, eqn: Any, ins: list[Value]) -> list[Value]:
        ins = [self.plain(value, "while") for value in ins]
        tests = eqn.params["cond_nconsts"]
        start = tests + eqn.params["body_nconsts"]
        is_data = any(value.is_data for value in ins)
        carry = [Value(value.axes, is_data) for value in ins[start:]]
        self.inside(eqn.params["cond_jaxpr"], [*ins[:tests], *carry])
        outs = self.inside(eqn.params["body_jaxpr"], [*ins[tests:start], *carry])
        _tie(self.result.terms, carry, outs)
        return carry

    def cond(self, eqn: Any, ins: list[Value]) -> list[Value]:
        _, *operands = [self.plain(value, "cond") for value in ins]
        is_data = any(value.is_data for value in ins)
        first, *others = [self.inside(b, operands) for b in eqn.params["branches"]]
        for other in others:
            _tie(self.result.terms, first, other)
        return [Value(value.axes, is_data) for value in first]

    def inside(
        self,
        jaxpr: Any,
        args: Sequence[Value],
        loop: Any = None,
        length: Term | None = None,
    ) -> list[Value]:
        """Walk through a jaxpr inside an equation; return the values of its outputs."""
        body = open_jaxpr(jaxpr)
        consts = getattr(jaxpr, "consts", ())
        scope = dict(zip(body.invars, args, strict=True))
        for var, const in zip(body.constvars, consts, strict=True):
            scope[var] = _constant(self.result.terms, const)
        readable = loop is not None and self.loops is not None
        loops = (*self.loops, loop) if readable and self.loops is not None else None
        around = self.around if length is None else (*self.around, length)
        walker = _Walker(self.result, scope, loops, around)
        walker.enter()
        walker.eqns(body.eqns)
        outs = [walker.of(var) for var in body.outvars]
        return [walker.plain(value, "a loop or branch") for value in outs]

    def plain(self, value: Value, where: str) -> Value:
        """Drop what is known of a value that goes where that is not followed."""
        forget(self.result.terms, value.tag, where)
        return Value(
            value.axes, value.is_data, number=value.number, is_picked=value.is_picked
        )


def _picks(eqn: Any, ins: Sequence[Value]) -> bool:
    """Whether an equation picks from leaves, or changes what is picked from them."""
    by_index = primitive_of(eqn).lookups is not None
    return (
        any(value.is_data for value in ins)
        and contraction(eqn) is None
        and max(value.nearness for value in (ins[:1] if by_index else ins)) < 2
    )


def _constant(terms: Terms, value: Any) -> Value:
    """A constant fixes the axes along which its bits vary."""
    shape = np.shape(value)
    axes = [terms.leaf(size) for size in shape]
    if any(size > 1 for size in shape):
        array = np.ascontiguousarray(value)
        bits = array.reshape(-1).view(np.uint8).reshape(*shape, -1)
        for number, term in enumerate(axes):
            if bits.size and not (bits == bits.take([0], axis=number)).all():
                terms.pin(term, "meets a constant that varies along it")
    return Value(axes)


def _tie(terms: Terms, a: Sequence[Value], b: Sequence[Value]) -> None:
    for left, right in zip(a, b, strict=True):
        for x, y in zip(left.axes, right.axes, strict=True):
            terms.unify(x, y)


def _merge_stray_members(result: Walk) -> None:
    """Where it is not clear where on a family's axis a value is, merge its members.

    That axis is not there, or there twice, or only inside a family.
    """
    terms, merged = result.terms, set()
    while True:
        terms.settle()
        stray = set(_stray_families(result)) - merged
        if not stray:
            return
        for family in stray:
            terms.merge_members(family)
        merged |= stray


def _stray_families(result: Walk) -> Iterator[Term]:
    terms = result.terms
    for here in (*result.values, *result.met):
        axes = (*here.value.axes, *here.around)
        if any(map(terms.families, axes)):
            for block in itertools.product(*map(terms.blocks, axes)):
                counts = Counter(itertools.chain(*block))
                families = (f for leaf in counts for f in terms.families(leaf))
                yield from (
                    f
                    for f in families
                    if counts[terms.split(f)] != 1
                    or not terms.is_in_place(terms.split(f))
                )
