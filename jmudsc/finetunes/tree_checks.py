"""Tree checks: whether the models, and the base, are different trees of one kind."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.lazy import is_lazy

# How the leaves of low-rank adapters are called: of PEFT, NNX, qwix.
_FACTOR = re.compile(
    r"(?:^|[/._])lora_(?:embedding_)?([abAB])(?:[/.](?:weight|value))?$"
)


def check_trees(where: str, models: Sequence[PyTree], base: PyTree | None) -> None:
    """Check that the models, and the base, are different trees of one structure.

    Floating-point leaves may be of different dtypes.

    Args:
        where: the caller, named in errors.
        models: the variables of each model.
        base: those of the base.

    Raises:
        ValueError: listing every difference from the base, or from the first model
            without one, or the trees that were passed twice.
    """
    trees = [] if base is None else [("base", paths.flatten(base))]
    trees += [(f"models[{n}]", paths.flatten(m)) for n, m in enumerate(models)]
    if not trees:
        raise ValueError(
            f"{where}: expected at least one model, got none. Pass a list of models."
        )
    (first, leaves), *others = trees
    problems = [
        line
        for name, other in others
        for line in _differences(first, leaves, name, other)
    ]
    if problems:
        raise ValueError(
            f"{where}: expected trees with the same leaves and shapes, got "
            f"{counted(len(problems), 'difference')}:\n"
            f"{paths.listed(problems, most=30)}\n"
            "Pass models that were trained from this base; rename leaves first, or cut "
            "tables to the same rows."
        )
    if twice := _passed_twice(trees):
        raise ValueError(
            f"{where}: expected different models, got the same arrays as "
            f"{' and '.join(twice)}. Pass each model once, and the base as base= only."
        )


def check_no_factors(where: str, leaves: Iterable[str]) -> None:
    """Check that what is merged are weights, not the factors of low-rank adapters.

    Args:
        where: the caller, named in errors.
        leaves: the paths of what is merged.

    Raises:
        ValueError: if both factors of an update are among them.
    """
    found = {path: match for path in leaves if (match := _FACTOR.search(path))}
    if {match[1].lower() for match in found.values()} == {"a", "b"}:
        raise ValueError(
            f"{where}: expected weights, got factors of low-rank adapters: "
            f"{paths.listed_in_line(found)}. The product of mean factors is not the "
            "mean of products: merge them with merge_loras, or fold each into its "
            "base first."
        )


def check_all_finite(where: str, models: Sequence[PyTree], base: PyTree | None) -> None:
    """Check that what is in memory is finite; what is on disk is checked when read.

    Args:
        where: the caller, named in errors.
        models: the variables of each model.
        base: those of the base.

    Raises:
        ValueError: listing every leaf with a NaN or an infinity.
    """
    trees = {f"models[{n}]": model for n, model in enumerate(models)}
    trees |= {} if base is None else {"base": base}
    problems = [
        f"{name}: {path}"
        for name, tree in trees.items()
        if not is_lazy(tree)
        for path, leaf in paths.flatten(tree).items()
        if is_float(leaf) and not bool(jnp.isfinite(jnp.asarray(leaf)).all())
    ]
    if problems:
        raise ValueError(
            f"{where}: expected finite numbers, got NaN or infinity in "
            f"{counted(len(problems), 'leaf', 'leaves')}:\n{paths.listed(problems)}\n"
            "Take an earlier checkpoint of that run."
        )


def is_float(leaf: Any) -> bool:
    """Whether a leaf holds real or complex numbers, by its dtype."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.inexact)


def counted(number: int, one: str, many: str | None = None) -> str:
    """Say how many there are of something, one or several."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def _differences(
    first: str, leaves: Mapping[str, Any], name: str, other: Mapping[str, Any]
) -> list[str]:
    found = [f"{name} lacks {path}" for path in leaves if path not in other]
    found += [
        f"{name} has {path}, {first} has not" for path in other if path not in leaves
    ]
    for path in (path for path in leaves if path in other):
        ours, theirs = leaves[path], other[path]
        if np.shape(ours) != np.shape(theirs) or is_float(ours) != is_float(theirs):
            found.append(
                f"{path} is {_kind(ours)} in {first}, {_kind(theirs)} in {name}"
            )
    return found


def _passed_twice(trees: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    seen: dict[tuple[int, ...], str] = {}
    for name, leaves in trees:
        identity = tuple(map(id, leaves.values()))
        if identity and identity in seen:
            return [seen[identity], name]
        seen[identity] = name
    return []


def _kind(leaf: Any) -> str:
    return f"{jnp.result_type(getattr(leaf, 'dtype', leaf))}{list(np.shape(leaf))}"
