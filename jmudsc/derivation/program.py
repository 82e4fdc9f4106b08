"""Program: an `apply_fn` as a flat list of primitive equations.

Everything jmudsc knows about a model it reads from here: calls (`jit`, `remat`,
`custom_jvp`, ...) are inlined and dead equations dropped, so that one loop over the
equations sees the whole computation, and any value in it can be returned.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.derivation import shard_map
from jmudsc.derivation.explain_failure import explain_failure
from jmudsc.derivation.rules.common import shape_of as shape_of
from jmudsc.derivation.rules.table import primitive_of
from jmudsc.derivation.terms.values import Place
from jmudsc.spec.check_variables import check_arrays
from jmudsc.types import ApplyFn


@dataclass(frozen=True, eq=False)
class Program:
    """A traced `apply_fn`.

    Attributes:
        invars: the leaves of the variables, then those of the batch.
        consts: the constants of the program and their values.
        eqns: primitive equations in order, none of them a call, none of them dead.
        outvars: the leaves of the output.
        paths: the path of each variables leaf, in the order of `invars`.
    """

    invars: tuple[jex.Var, ...]
    consts: dict[jex.Var, Any]
    eqns: tuple[jex.JaxprEqn, ...]
    outvars: tuple[Any, ...]
    paths: tuple[str, ...]

    @property
    def leaves(self) -> dict[str, jex.Var]:
        """The variable of each leaf, by path."""
        return dict(zip(self.paths, self.invars, strict=False))

    @functools.cached_property
    def path_of(self) -> dict[jex.Var, str]:
        """The path of each leaf, by variable."""
        return dict(zip(self.invars, self.paths, strict=False))

    @property
    def inputs(self) -> tuple[jex.Var, ...]:
        """The leaves of the batch."""
        return self.invars[len(self.paths) :]


def trace(apply_fn: ApplyFn, variables: PyTree, batch: PyTree) -> Program:
    """Trace `apply_fn(variables, batch)` without computing or allocating anything.

    Args:
        apply_fn: a pure JAX function of variables and batch, in evaluation mode.
        variables: arrays or `jax.ShapeDtypeStruct`s.
        batch: arrays or `jax.ShapeDtypeStruct`s as well.

    Returns:
        The program, with every call inlined.

    Raises:
        TypeError: if a leaf of `variables` or `batch` is not an array, or `apply_fn`
            takes something else and it can be told what.
    """
    abstract = _abstract("variables", variables), _abstract("batch", batch)
    try:
        closed = jax.make_jaxpr(apply_fn)(*abstract)
    except Exception as error:  # the code of a user may raise any
        if why := explain_failure(apply_fn, *abstract):
            raise TypeError(why) from error
        error.add_note(f"apply_fn fails on variables and {_kind(abstract[1])}.")
        raise

    def inlined(*args):
        return evaluate_jaxpr(closed, args)

    flat = jax.make_jaxpr(inlined)(*jax.tree.leaves(abstract))
    jaxpr = flat.jaxpr
    return Program(
        invars=tuple(jaxpr.invars),
        consts=dict(zip(jaxpr.constvars, flat.consts, strict=True)),
        eqns=live_equations(jaxpr.eqns, jaxpr.outvars),
        outvars=tuple(jaxpr.outvars),
        paths=tuple(paths.flatten(variables)),
    )


def unread(program: Program, outputs: Sequence[Any] | None = None) -> frozenset[str]:
    """Find the leaves that some outputs do not depend on.

    Args:
        program: from `trace`.
        outputs: some of `program.outvars`; None for all.

    Returns:
        The paths of the leaves. What a loop computes and nobody reads counts as not
        computed.
    """
    wanted = program.outvars if outputs is None else outputs
    needed = _needed(program.eqns, wanted)
    return frozenset(path for path, var in program.leaves.items() if var not in needed)


def run(program: Program, args: Sequence[Any], wanted: Iterable[Place]) -> list[Any]:
    """Evaluate a program and return chosen values of it; use under `jit`.

    Args:
        program: from `trace`.
        args: one array per `program.invars`.
        wanted: where the values are, in any order; `jit` drops the rest.

    Returns:
        One array per place. A value inside loops has their steps as leading axes,
        outermost first.
    """
    wanted = list(wanted)
    values = dict(program.consts) | dict(zip(program.invars, args, strict=True))
    found = _run(program.eqns, values, wanted)
    return [found[place] for place in wanted]


def evaluate_jaxpr(jaxpr: Any, args: Sequence[Any]) -> list[Any]:
    """Evaluate a closed jaxpr with all calls in it inlined.

    Args:
        jaxpr: a closed jaxpr.
        args: one array per input of it.

    Returns:
        One array per output.
    """
    return _evaluate(jaxpr, args, [])[0]


def scan_operands(eqn: jex.JaxprEqn) -> tuple[int, int]:
    """Return how many of the operands of a `scan` are constants, and how many carried.

    Args:
        eqn: a `scan` equation; the other operands are scanned over.

    Returns:
        The two numbers. They are read off the shapes, since the parameters that hold
        them differ between versions of JAX.
    """
    inner = open_jaxpr(eqn.params["jaxpr"])
    scanned = sum(
        len(shape_of(outer)) == len(shape_of(var)) + 1
        for outer, var in zip(eqn.invars, inner.invars, strict=True)
    )
    carried = sum(
        len(shape_of(outer)) == len(shape_of(var))
        for outer, var in zip(eqn.outvars, inner.outvars, strict=True)
    )
    return len(eqn.invars) - scanned - carried, carried


def live_equations(
    eqns: Sequence[jex.JaxprEqn], outvars: Sequence[Any]
) -> tuple[jex.JaxprEqn, ...]:
    """Return the equations that some outputs depend on, in order.

    Args:
        eqns: equations in order.
        outvars: the outputs, variables or literals.
    """
    needed = {var for var in outvars if not isinstance(var, jex.Literal)}
    kept = []
    for eqn in reversed(eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return tuple(reversed(kept))


def _evaluate(
    jaxpr: Any, args: Sequence[Any], wanted: Sequence[Place]
) -> tuple[list[Any], dict[Place, Any]]:
    inner = open_jaxpr(jaxpr)
    consts = getattr(jaxpr, "consts", ())
    values = dict(zip(inner.constvars, consts, strict=True))
    values |= dict(zip(inner.invars, args, strict=True))
    found = _run(inner.eqns, values, wanted)
    return [_read(values, var) for var in inner.outvars], found


def _run(
    eqns: Iterable[jex.JaxprEqn], values: dict[Any, Any], wanted: Sequence[Place]
) -> dict[Place, Any]:
    """Evaluate equations, filling `values`; return the wanted ones."""
    found: dict[Place, Any] = {}
    for eqn in eqns:
        ins = [_read(values, var) for var in eqn.invars]
        inside = [place for place in wanted if place.loops and place.loops[0] is eqn]
        if eqn.primitive.name == "scan":
            outs, inner = _scan(eqn, ins, [place.inside() for place in inside])
            found |= {place: inner[place.inside()] for place in inside}
        else:
            outs = _apply(eqn, ins)
        values.update(zip(eqn.outvars, outs, strict=True))
    found |= {place: values[place.var] for place in wanted if not place.loops}
    return found


def _apply(eqn: jex.JaxprEqn, ins: list[Any]) -> list[Any]:
    """Evaluate one equation that is no `scan`.

    What has a program inside is evaluated here, by name, because calls in there are to
    be inlined as well: how to do so is no property of the primitive.
    """
    record, name, params = primitive_of(eqn), eqn.primitive.name, eqn.params
    if record.call is not None:
        return evaluate_jaxpr(*record.call(params, ins))
    if name == "shard_map":
        try:
            return shard_map.on_whole_arrays(params, ins, evaluate_jaxpr)
        except NotImplementedError:  # not every collective has a `vmap`
            params = eqn.primitive.get_bind_params(params)
    if record.without_devices is not None:
        return [record.without_devices(x, **params) for x in ins]
    if name == "while":
        return _while(params, ins)
    if name == "cond":
        branches = [functools.partial(_branch, body) for body in params["branches"]]
        return jax.lax.switch(ins[0], branches, *ins[1:])
    outs = eqn.primitive.bind(*ins, **params)
    return list(outs) if eqn.primitive.multiple_results else [outs]


def _branch(jaxpr: Any, *args: Any) -> list[Any]:
    return evaluate_jaxpr(jaxpr, args)


def _while(params: dict[str, Any], ins: list[Any]) -> list[Any]:
    tests = params["cond_nconsts"]
    start = tests + params["body_nconsts"]

    def goes_on(carry: list[Any]) -> Any:
        return evaluate_jaxpr(params["cond_jaxpr"], [*ins[:tests], *carry])[0]

    def body(carry: list[Any]) -> list[Any]:
        return evaluate_jaxpr(params["body_jaxpr"], [*ins[tests:start], *carry])

    return jax.lax.while_loop(goes_on, body, ins[start:])


def _scan(
    eqn: jex.JaxprEqn, ins: list[Any], wanted: Sequence[Place]
) -> tuple[list[Any], dict[Place, Any]]:
    consts, carried = scan_operands(eqn)

    def step(carry: list[Any], xs: list[Any]) -> tuple[list[Any], tuple]:
        outs, found = _evaluate(
            eqn.params["jaxpr"], [*ins[:consts], *carry, *xs], wanted
        )
        return outs[:carried], (outs[carried:], [found[place] for place in wanted])

    carry, (ys, found) = jax.lax.scan(
        step,
        ins[consts : consts + carried],
        ins[consts + carried :],
        eqn.params["length"],
        eqn.params["reverse"],
    )
    return [*carry, *ys], dict(zip(wanted, found, strict=True))


def open_jaxpr(jaxpr: Any) -> Any:
    """Return the jaxpr in a closed jaxpr, or the jaxpr itself."""
    return getattr(jaxpr, "jaxpr", jaxpr)


def _read(values: dict[Any, Any], var: Any) -> Any:
    return var.val if isinstance(var, jex.Literal) else values[var]


def _needed(eqns: Sequence[jex.JaxprEqn], wanted: Iterable[Any]) -> set[Any]:
    """Return the values that some values are computed from, and these."""
    needed = set(variables_of(wanted))
    for eqn in reversed(eqns):
        is_needed = [var in needed for var in eqn.outvars]
        if not any(is_needed):
            continue
        operands = eqn.invars
        if eqn.primitive.name == "scan":
            operands = _needed_by_scan(eqn, is_needed)
        needed.update(variables_of(operands))
    return needed


def _needed_by_scan(eqn: jex.JaxprEqn, is_needed: Sequence[bool]) -> list[Any]:
    """Return the operands that some outputs of a loop are computed from."""
    body = open_jaxpr(eqn.params["jaxpr"])
    start, carried = scan_operands(eqn)
    flags = list(is_needed)
    while True:
        wanted = [v for v, flag in zip(body.outvars, flags, strict=True) if flag]
        inside = _needed(body.eqns, wanted)
        carry = [var in inside for var in body.invars[start : start + carried]]
        grown = [a or b for a, b in zip(flags, carry, strict=False)] + flags[carried:]
        if grown == flags:
            break
        flags = grown
    outer = zip(eqn.invars, body.invars, strict=True)
    first = eqn.invars[start : start + carried]
    kept = [v for v, flag in zip(first, flags, strict=False) if flag]
    return kept + [var for var, inner in outer if inner in inside]


def _abstract(name: str, tree: PyTree) -> PyTree:
    check_arrays(name, tree)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), _dtype_of(x)), tree)


def _kind(batch: PyTree) -> str:
    """Write what a batch is: its leaves by path, with dtype and shape."""
    leaves = paths.flatten(batch)
    kinds = {path: f"{x.dtype}{list(x.shape)}" for path, x in leaves.items()}
    if list(kinds) == [""]:
        return f"a batch of {kinds['']}"
    named = ", ".join(f"{path}: {kind}" for path, kind in kinds.items())
    return f"a batch, a {type(batch).__name__} with {named or 'no array'}"


def _dtype_of(leaf: Any) -> Any:
    """Return the dtype a leaf has under `jit`, where numpy's doubles are floats."""
    known = isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct))
    return leaf.dtype if known else jax.dtypes.result_type(leaf)


def variables_of(values: Any) -> list[Any]:
    """Return those of some operands that are not literals."""
    return [var for var in values if not isinstance(var, jex.Literal)]
