"""Plan: what a merge would do and take."""

import sys

from jmudsc.commands.values import bytes_of, Place, place
from jmudsc.recipes.progress_bar import drawn


def plan(
    recipe: Place,
    output: str | None = None,
    overwrite: bool = False,
    memory: float | None = None,
) -> None:
    """Show what a merge would do and what it would take, and all that is wrong.

    Reads no arrays. The exit status is 1 if anything is wrong.

    Args:
        recipe: YAML file; of a configuration of mergekit the translation is shown.
        output: the checkpoint to write, in the place of the recipe's output.
        overwrite: allow an earlier merge at the recipe's output.
        memory: GiB that the merge may hold, as for merge.
    """
    from jmudsc.recipes.plan import plan_recipe
    from jmudsc.recipes.plan_report import plan_report

    with drawn() as progress:
        planned = plan_recipe(
            place(recipe),
            output=output,
            overwrite=overwrite,
            memory=bytes_of(memory),
            progress=progress,
        )
    print(plan_report(planned), end="")
    if planned.problems:
        sys.exit(1)
