"""Dump: a recipe as YAML that reads back as the same recipe."""

from typing import Any

import yaml

from jmudsc.merging.options import dumped
from jmudsc.recipes.import_path import plain_import_path
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import plain_source


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as YAML that `read_recipe` reads back.

    Args:
        recipe: the recipe.

    Returns:
        The text.
    """
    content: dict[str, Any] = {
        "models": [plain_source(source) for source in recipe.models]
    }
    for key, path in recipe.import_paths.items():
        content[key] = plain_import_path(path)
    content |= dumped(recipe.options)
    if recipe.spec is not None:
        content["spec"] = recipe.spec
    if recipe.losses is not None:
        plain = {task: plain_import_path(path) for task, path in recipe.losses.items()}
        content["losses"] = plain
    content |= {"seed": recipe.seed, "output": recipe.output}
    return yaml.safe_dump(content, sort_keys=False)
