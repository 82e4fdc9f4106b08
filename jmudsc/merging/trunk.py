"""Trunk: the part of a program that needs no separate leaf."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jmudsc.derivation.program import Program, run, trace, variables_of
from jmudsc.derivation.terms.values import Place
from jmudsc.types import ApplyFn


def trunk_fn(apply_fn: ApplyFn, variables: PyTree, trunk: Iterable[str]) -> ApplyFn:
    """Cut a model off where it first needs a leaf that is not of its trunk.

    Args:
        apply_fn: `(variables, batch) -> outputs`.
        variables: of the model, arrays or `jax.ShapeDtypeStruct`s.
        trunk: the paths of the leaves of the trunk.

    Returns:
        A function `(leaves, batch)` of the leaves of the trunk by path. It computes all
        that the rest of the model reads of the trunk, and returns the sum of each such
        value: whatever order their units are in, the sum is the same.
    """
    leaves, structure = jax.tree.flatten(variables)
    kinds = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    return _trunk_fn(apply_fn, structure, kinds, frozenset(trunk))


@functools.lru_cache(maxsize=64)
def _trunk_fn(
    apply_fn: ApplyFn, structure: Any, kinds: tuple[Any, ...], paths: frozenset[str]
) -> ApplyFn:
    """Return one function for all models of a kind, so that it is compiled once."""
    variables = jax.tree.unflatten(
        structure, [jax.ShapeDtypeStruct(*kind) for kind in kinds]
    )

    def apply(leaves: Mapping[str, jax.Array], batch: PyTree) -> list[jax.Array]:
        program = _cut(trace(apply_fn, variables, batch), paths)
        args = [*(leaves[path] for path in program.paths), *jax.tree.leaves(batch)]
        wanted = [Place(var) for var in program.outvars]
        return [jnp.sum(value) for value in run(program, args, wanted)]

    return apply


def _cut(program: Program, trunk: frozenset[str]) -> Program:
    """Keep what depends on no leaf but those of the trunk."""
    beyond = {var for path, var in program.leaves.items() if path not in trunk}
    kept, read = [], list(program.outvars)
    for eqn in program.eqns:
        if beyond.intersection(variables_of(eqn.invars)):
            beyond.update(eqn.outvars)
            read += eqn.invars
        else:
            kept.append(eqn)
    made = {var for eqn in kept for var in eqn.outvars if _is_number(var)}
    return Program(
        invars=tuple(var for var in program.invars if var not in beyond),
        consts=program.consts,
        eqns=tuple(kept),
        outvars=tuple(dict.fromkeys(v for v in variables_of(read) if v in made)),
        paths=tuple(path for path in program.paths if path in trunk),
    )


def _is_number(var: Any) -> bool:
    return jnp.issubdtype(var.aval.dtype, jnp.number)
