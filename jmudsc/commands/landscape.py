"""Landscape: the losses around and between the networks of a merge."""

from pathlib import Path

from jmudsc.commands.values import Place, place
from jmudsc.recipes.progress_bar import drawn


def landscape(
    recipe: Place,
    out: Path | None = None,
    points: int = 21,
    overwrite: bool = False,
) -> None:
    """Draw the losses around and between the networks of a merge, and its barriers.

    Args:
        recipe: YAML file with `losses` that was merged before.
        out: directory to make; if not given, the recipe's output and `-landscape`.
        points: of the plane along each axis, and of the line between the parents.
        overwrite: replace an earlier landscape.
    """
    from jmudsc.recipes.landscape import draw_landscape

    with drawn() as progress:
        path, text = draw_landscape(
            place(recipe),
            out=out,
            points=points,
            overwrite=overwrite,
            progress=progress,
        )
    print(text)
    print(f"Wrote {path}")
