"""Program: an `apply_fn` as a flat list of primitive equations.

Everything jmudsc knows about a model it reads from here: calls (`jit`, `remat`,
`custom_jvp`, ...) are inlined and dead equations dropped, so that one loop over the
equations sees the whole computation, and any value in it can be returned.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.extend.core as jex
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths

ApplyFn = Callable[[PyTree, PyTree], PyTree]

# Primitives that only wrap a jaxpr -> the parameter that holds it.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


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

    @property
    def inputs(self) -> tuple[jex.Var, ...]:
        """The leaves of the batch."""
        return self.invars[len(self.paths) :]


def trace(apply_fn: ApplyFn, variables: PyTree, batch: PyTree) -> Program:
    """Trace `apply_fn(variables, batch)` without computing or allocating anything.

    Args:
        apply_fn: a pure JAX function of variables and batch, in evaluation mode.
        variables: arrays or `jax.ShapeDtypeStruct`s.
        batch: likewise.

    Returns:
        The program, with every call inlined.

    Raises:
        TypeError: if a leaf of `variables` or `batch` is not an array.
    """
    abstract = _abstract("variables", variables), _abstract("batch", batch)
    closed = jax.make_jaxpr(apply_fn)(*abstract)

    def inlined(*args):
        return evaluate(closed.jaxpr, closed.consts, args)

    flat = jax.make_jaxpr(inlined)(*jax.tree.leaves(abstract))
    jaxpr = flat.jaxpr
    return Program(
        invars=tuple(jaxpr.invars),
        consts=dict(zip(jaxpr.constvars, flat.consts, strict=True)),
        eqns=_live(jaxpr.eqns, jaxpr.outvars),
        outvars=tuple(jaxpr.outvars),
        paths=tuple(paths.flatten(variables)),
    )


def run(program: Program, args: Sequence[Any], wanted: Iterable[Any]) -> list[Any]:
    """Evaluate a program and return chosen values of it; use under `jit`.

    Args:
        program: from `trace`.
        args: one array per `program.invars`.
        wanted: the variables to return, in any order; `jit` drops the rest.

    Returns:
        One array per wanted variable.
    """
    values = dict(program.consts) | dict(zip(program.invars, args, strict=True))
    _run(program.eqns, values)
    return [values[var] for var in wanted]


def evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr with all calls in it inlined.

    Args:
        jaxpr: an open jaxpr.
        consts: one array per constant of it.
        args: one array per input of it.

    Returns:
        One array per output.
    """
    values = dict(zip(jaxpr.constvars, consts, strict=True))
    values |= dict(zip(jaxpr.invars, args, strict=True))
    _run(jaxpr.eqns, values)
    return [_read(values, var) for var in jaxpr.outvars]


def _run(eqns: Iterable[jex.JaxprEqn], values: dict[jex.Var, Any]) -> None:
    for eqn in eqns:
        ins = [_read(values, var) for var in eqn.invars]
        body = _CALLS.get(eqn.primitive.name)
        if body is not None:
            inner = eqn.params[body]
            outs = evaluate(
                getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), ins
            )
        else:
            outs = eqn.primitive.bind(*ins, **eqn.params)
            outs = outs if eqn.primitive.multiple_results else [outs]
        values.update(zip(eqn.outvars, outs, strict=True))


def _read(values: dict[jex.Var, Any], var: Any) -> Any:
    return var.val if isinstance(var, jex.Literal) else values[var]


def _live(eqns: Sequence[jex.JaxprEqn], outvars: Sequence[Any]) -> tuple:
    needed = {var for var in outvars if not isinstance(var, jex.Literal)}
    kept = []
    for eqn in reversed(eqns):
        if needed.intersection(eqn.outvars):
            kept.append(eqn)
            needed |= {v for v in eqn.invars if not isinstance(v, jex.Literal)}
    return tuple(reversed(kept))


def _abstract(name: str, tree: PyTree) -> PyTree:
    wrong = [
        f"{path}: {type(leaf).__name__}"
        for path, leaf in paths.flatten(tree).items()
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
        and not isinstance(leaf, (bool, int, float, complex))
    ]
    if wrong:
        raise TypeError(
            f"{name}: {len(wrong)} leaves are not arrays:\n{paths.listed(wrong)}\n"
            "Pass arrays or jax.ShapeDtypeStructs only; keep functions and strings "
            "inside apply_fn (for Equinox: equinox.partition(model, is_array))."
        )
    return jax.tree.map(
        lambda x: (
            jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x))
            if not hasattr(x, "dtype")
            else jax.ShapeDtypeStruct(x.shape, x.dtype)
        ),
        tree,
    )
