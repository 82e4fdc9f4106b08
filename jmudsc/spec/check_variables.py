"""Check variables: before anything is computed with them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import check_there
from jmudsc.lazy import present
from jmudsc.sharding import sharding_of, to_host
from jmudsc.spec.permutation_spec import PermutationSpec


def check_arrays(name: str, tree: PyTree) -> None:
    """Check that every leaf of a tree is an array, a number or the shape of one.

    Args:
        name: what the tree is, named in the error.
        tree: any pytree.

    Raises:
        TypeError: listing every leaf that is not.
    """
    wrong = [
        f"{path}: {type(leaf).__name__}"
        for path, leaf in paths.flatten(tree).items()
        if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
        and not isinstance(leaf, (bool, int, float, complex))
    ]
    if wrong:
        raise TypeError(
            f"{name}: expected arrays, got other leaves:\n{paths.listed(wrong)}\n"
            "Pass arrays or jax.ShapeDtypeStructs only; keep functions and strings "
            "inside apply_fn (for Equinox: equinox.partition(model, is_array))."
        )


def check_models(where: str, models: Any) -> None:
    """Check that models are a list of trees, and not one tree or an iterator.

    Args:
        where: the caller, named in the error.
        models: the variables of each model.

    Raises:
        TypeError: if they are anything else.
    """
    if isinstance(models, Sequence) and not isinstance(models, str):
        return
    kind = f"an object of type {type(models).__name__}"
    advice = "Pass [first, second]."
    if isinstance(models, Mapping):
        kind = f"one mapping, of {paths.listed_in_line(models)}"
    elif isinstance(models, Iterator):
        kind, advice = f"a {type(models).__name__}", "Pass list(models)."
    raise TypeError(
        f"{where}: models: expected a list of the variables of each model, got {kind}. "
        f"{advice}"
    )


def check_same(where: str, models: Sequence[PyTree]) -> None:
    """Check that all models have the same leaves, shapes and dtypes.

    Args:
        where: the caller, named in the error.
        models: the variables of each model.

    Raises:
        TypeError: if there is no list of models, or a leaf is not an array.
        ValueError: if a leaf was deleted, or listing every difference of every model
            from the first.
    """
    check_models(where, models)
    if len(models) < 2:
        raise ValueError(
            f"{where}: expected at least 2 models, got {len(models)}. Pass all that "
            "are to be merged."
        )
    for number, model in enumerate(models):
        check_arrays(f"{where}: model {number}", model)
        check_there(f"{where}: model {number}", model)
    if problems := differences(models):
        raise ValueError(
            f"{where}: expected models with the same leaves, shapes and dtypes, got "
            f"some that differ:\n{paths.listed(problems, most=30)}\n"
            "Merge checkpoints of one architecture; rename or cast leaves first."
        )


def differences(models: Sequence[PyTree]) -> list[str]:
    """Return where models have not the leaves, shapes and dtypes of the first.

    Args:
        models: the variables of each model, arrays or `jax.ShapeDtypeStruct`s.
    """
    first, *others = map(paths.flatten, models)
    return [
        difference
        for number, other in enumerate(others, start=1)
        for difference in _differences(first, other, number)
    ]


def check_finite(where: str, models: Sequence[PyTree]) -> None:
    """Check that every floating-point leaf of every model is finite.

    Args:
        where: the caller, named in the error.
        models: the variables of each model.

    Raises:
        ValueError: listing every leaf with a NaN or an infinity.
    """
    problems = []
    for number, model in enumerate(models):
        for path, leaf in paths.flatten(model).items():
            if _is_inexact(leaf) and (bad := int(_non_finite(present(leaf)))):
                problems.append(
                    f"model {number}: {bad} of {np.size(leaf)} values of {path} are "
                    "NaN or infinite"
                )
    if problems:
        raise ValueError(
            f"{where}: expected finite parameters, got others:\n"
            f"{paths.listed(problems)}\nTake an earlier checkpoint of that run."
        )


def check_covers(where: str, spec: PermutationSpec, leaves: Mapping[str, Any]) -> None:
    """Check that a spec names exactly the leaves that are there, with their shapes.

    Args:
        where: the caller, named in the error.
        spec: the permutation spec.
        leaves: leaf path -> array.

    Raises:
        ValueError: listing every leaf that is missing, unknown or of another shape.
    """
    problems = []
    for path, axes in spec.axes.items():
        sizes = tuple(axis.size for axis in axes)
        if path not in leaves:
            hint = paths.did_you_mean(path, leaves)
            problems.append(f"{path}: is in the spec, but not in the variables{hint}")
        elif np.shape(leaves[path]) != sizes:
            shape = np.shape(leaves[path])
            problems.append(f"{path}: the spec says shape {sizes}, got {shape}")
    problems += [f"{p}: is not in the spec" for p in leaves if p not in spec.axes]
    if problems:
        raise ValueError(
            f"{where}: expected variables that the spec fits, got others:\n"
            f"{paths.listed(problems)}\nDerive it from these variables with infer_spec."
        )


def _differences(
    first: Mapping[str, Any], other: Mapping[str, Any], number: int
) -> list[str]:
    lacks = [f"model {number} lacks {p}" for p in first if p not in other]
    adds = [f"model {number} has {p}, model 0 has not" for p in other if p not in first]
    changed = []
    for path in first:
        if path in other:
            ours, theirs = _kind(first[path]), _kind(other[path])
            if ours != theirs:
                changed.append(
                    f"{path} is {ours} in model 0, {theirs} in model {number}"
                )
    return lacks + adds + changed


def _kind(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"


def _is_inexact(leaf: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _non_finite(leaf: Any) -> Any:
    """Count what is not finite, on the host unless the leaf is spread over devices."""
    if sharding_of(leaf) is None:
        return np.count_nonzero(~np.isfinite(to_host(leaf)))
    return _non_finite_there(leaf)


@jax.jit
def _non_finite_there(leaf: jax.Array) -> jax.Array:
    return (~jnp.isfinite(leaf)).sum()
