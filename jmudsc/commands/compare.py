"""Compare: many ways to merge the checkpoints of a recipe, in one table."""

from jmudsc.commands.values import bytes_of, Place, place
from jmudsc.recipes.progress_bar import drawn


def compare(
    recipe: Place,
    methods: tuple[str, ...] = (),
    out: str | None = None,
    overwrite: bool = False,
    memory: float | None = None,
) -> None:
    """Merge by many methods and repairs, and compare all of them in one table.

    Statistics are gathered once for all. Parents, their plain average and their
    ensemble are rows too, and what is best is said in the first line. Nothing is saved
    unless --out is given.

    Args:
        recipe: recipe, a YAML file; its own method, refit and repair are not used.
        methods: what to compare, a method with the repairs that it is to have: average
            mudsc-zip mudsc-zip+refit mudsc-align+rescale; if not given, average,
            mudsc-align and mudsc-zip, each with and without a refit.
        out: the checkpoint to write the best to, with the table in its report.
        overwrite: replace an earlier merge at out.
        memory: GiB that may be held, as for merge.
    """
    from jmudsc.recipes.compare import compare_recipe
    from jmudsc.recipes.merge import Doing

    with drawn() as progress:
        doing = Doing(overwrite, bytes_of(memory), progress)
        path, text = compare_recipe(place(recipe), methods, out, doing)
    print(text)
    if path is not None:
        print(f"Wrote {path}")
