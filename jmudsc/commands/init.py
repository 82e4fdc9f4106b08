"""Init: a recipe for checkpoints, written after a look at them."""

from pathlib import Path
from typing import Annotated

import tyro


def init(
    checkpoints: Annotated[tuple[str, ...], tyro.conf.Positional],
    out: Annotated[Path, tyro.conf.arg(aliases=("-o",))] = Path("recipe.yaml"),
    overwrite: bool = False,
) -> None:
    """Write a recipe with comments for some checkpoints, after a look at them.

    Finds out their formats, what of a training state is variables, which leaves differ,
    whether they were trained from one network, and which of them that is. Asks for
    nothing; what is missing is said in the recipe.

    Args:
        checkpoints: two or more paths or URLs, of all that are to be merged, and of
            their base if they have one.
        out: the recipe to write.
        overwrite: replace what is there.
    """
    from jmudsc.recipes.init import init_recipe

    print(init_recipe(checkpoints, out, overwrite=overwrite))
