"""Reader: a recipe from its YAML file, or all that is wrong with it."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from jmudsc.checkpoints.urls import folder_of, path_of
from jmudsc.merging.option_values import quoted
from jmudsc.merging.options import MergeOptions, OPTIONS
from jmudsc.paths import plural
from jmudsc.recipes.import_path import ImportPath, read_import_path
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import read_sources, Source
from jmudsc.recipes.yaml_keys import (
    path_text,
    read_keys,
    read_yaml,
    Reader,
    refuse,
)


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        path: a YAML file.

    Returns:
        The recipe.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML mapping, or listing every key that is unknown,
            missing or has a wrong value.
    """
    place = path_of(path)
    content = read_yaml(place, "a recipe")
    recipe = parse_recipe(content, str(place))
    return dataclasses.replace(recipe, folder=folder_of(place))


def parse_recipe(content: Any, where: str = "recipe") -> Recipe:
    """Build a recipe from plain values.

    Args:
        content: the keys of a recipe and their values.
        where: what to call it in an error.

    Returns:
        The recipe.

    Raises:
        ValueError: listing every key that is unknown, missing or has a wrong value.
    """
    recipe, problems = parse_keys(content, where)
    refuse(where, problems)
    return recipe


def parse_keys(content: Any, where: str = "recipe") -> tuple[Recipe, list[str]]:
    """Read what can be read of a recipe.

    Args:
        content: the keys of a recipe and their values.
        where: what to call it in an error.

    Returns:
        A recipe of the keys that are right, with no models, no output or import paths
        to nothing in the place of others that it needs; and what is wrong with those.

    Raises:
        ValueError: if the content is no mapping.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(
            f"{where}: expected a mapping of keys to values, got a {kind}. Start with "
            '"models:".'
        )
    values, problems = read_keys(content, KEYS, ("models", "apply_fn", "output"))
    problems += _contradictions(values, "batches" in content)
    nothing = {"models": (), "apply_fn": ImportPath(""), "output": ""}
    own = {key: values[key] for key in values if key not in OPTIONS}
    recipe = Recipe(
        **{**nothing, **own},
        options=MergeOptions(**{key: values[key] for key in values if key in _PLAIN}),
        functions={key: values[key] for key in values if key in FUNCTIONS},
    )
    return recipe, problems


def _contradictions(values: Mapping[str, Any], has_batches: bool) -> list[str]:
    """Say what keys that are right by themselves say of each other."""
    models, weights = values.get("models"), values.get("weights")
    losses = values.get("losses")
    if not models:
        return []
    problems = [_batches_problem(models, has_batches)]
    if weights and len(models) != len(weights):
        problems.append(
            f"weights: expected {len(models)} values, one for each model, got "
            f"{len(weights)}. Leave them out for equal shares."
        )
    if losses and values.get("separate") and len(losses) != len(models):
        problems.append(
            f"losses: expected {len(models)} tasks, one for each model since leaves "
            f"are separate, got {len(losses)}. Give every model its task."
        )
    return [problem for problem in problems if problem]


def _batches_problem(models: Sequence[Source], shared: bool) -> str | None:
    """Say what is wrong with where batches are given, if anything is."""
    without = [str(n) for n, source in enumerate(models) if source.batches is None]
    if shared and len(without) < len(models):
        return (
            "batches: expected them in one place, got them here and with "
            f"{plural(len(models) - len(without), 'model')}. Leave out one of the two."
        )
    if not shared and len(without) == len(models):
        return (
            "batches: expected batches, got none. Name them here, or with each of the "
            "models."
        )
    if not shared and without:
        return (
            f"batches: expected them with every model, got none with "
            f"{'model' if len(without) == 1 else 'models'} {', '.join(without)}. Name "
            "them with all models, or once for all."
        )
    return None


def _losses(value: Any) -> dict[str, ImportPath]:
    named = value
    if isinstance(value, list):
        named = {f"task {chr(65 + n)}": loss for n, loss in enumerate(value)}
    if not isinstance(named, dict) or not named or not all(map(_is_name, named)):
        raise ValueError(
            "expected a mapping of tasks to import paths, or a list of import paths, "
            f'got {quoted(value)}. A task may have any name but "sum".'
        )
    return {task: read_import_path(loss) for task, loss in named.items()}


def _is_name(task: Any) -> bool:
    return isinstance(task, str) and task not in ("", "sum")


def _seed(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise ValueError(
            f"expected a whole number in [0, 2**32), got {quoted(value)}. Leave it out "
            "for 0."
        )
    return value


_PLAIN: Mapping[str, Reader] = {
    name: option.read
    for name, option in OPTIONS.items()
    if option.in_recipe == "value" and option.read
}

# The options that a recipe gives by import path.
FUNCTIONS = tuple(
    name for name, option in OPTIONS.items() if option.in_recipe == "import path"
)

# Of each key of a recipe, what reads it.
KEYS: Mapping[str, Reader] = {
    "models": read_sources,
    "apply_fn": read_import_path,
    "batches": read_import_path,
    **dict.fromkeys(FUNCTIONS, read_import_path),
    **_PLAIN,
    "seed": _seed,
    "spec": path_text,
    "losses": _losses,
    "output": path_text,
}
