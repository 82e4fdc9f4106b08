"""Spec: what of a model may be permuted."""

from jmudsc.commands.values import Place, place
from jmudsc.recipes.progress_bar import drawn


def spec(recipe: Place) -> None:
    """Print the permutation spec of a recipe's model as a table.

    Args:
        recipe: YAML file.
    """
    from jmudsc.recipes.merge import spec_of

    with drawn() as progress:
        derived = spec_of(place(recipe), progress)
    print(derived)
