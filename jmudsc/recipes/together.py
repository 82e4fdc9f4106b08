"""Together: what a merge of checkpoints is given where several processes do it."""

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from jmudsc.checkpoints.spread import read_spread
from jmudsc.checkpoints.urls import AnyPath, is_url
from jmudsc.merging.options import MergeOptions
from jmudsc.progress import Progress
from jmudsc.recipes.resolve import load_model
from jmudsc.recipes.schema import Recipe
from jmudsc.sharding import along_longest


def check_together(path: AnyPath, recipe: Recipe, memory: int | None) -> None:
    """Check that several processes can do together what a recipe says.

    Args:
        path: the recipe's file, named in errors.
        recipe: the recipe.
        memory: what models may take in memory, if that was given.

    Raises:
        ValueError: if they cannot.
    """
    count = jax.process_count()
    if recipe.options.separate:
        raise ValueError(
            f"{path}: expected no separate leaves, since {count} processes write one "
            "network together, got some. Merge in one process."
        )
    if memory is not None and isinstance(recipe.options, MergeOptions):
        raise ValueError(
            f"--memory: expected none with {count} processes, which hold all models "
            "spread over their devices, got one. Leave it out."
        )
    if is_url(recipe.output):
        raise ValueError(
            f"{path}: output: expected a folder that all {count} processes see, got "
            f"the URL {recipe.output}. Write to a shared disk and copy the result."
        )


def spread_models(
    recipe: Recipe, mesh: Mesh, progress: Progress | None
) -> list[PyTree[jax.Array]]:
    """Read the models of a recipe to the devices of all processes.

    Args:
        recipe: the recipe.
        mesh: all devices, in a row; every leaf is spread along its longest axis that
            divides among them.
        progress: called with the stage.

    Returns:
        One tree for each model.
    """
    return [
        read_spread(
            load_model(recipe, source, progress, lazy=True),
            lambda path, leaf: along_longest(mesh, leaf.shape),
        )
        for source in recipe.models
    ]
