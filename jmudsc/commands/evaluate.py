"""Evaluate: a merged network beside its parents."""

from jmudsc.commands.values import Place, place
from jmudsc.recipes.progress_bar import drawn


def evaluate(recipe: Place, checkpoint: str | None = None) -> None:
    """Judge a merged network beside its parents, by a recipe's losses and score too.

    Args:
        recipe: YAML file.
        checkpoint: the merged network, if not the recipe's output.
    """
    from jmudsc.recipes.evaluate import evaluate_recipe

    with drawn() as progress:
        text = evaluate_recipe(place(recipe), checkpoint, progress)
    print(text)
