"""Merge: checkpoints become one, as a recipe says."""

from jmudsc.commands.values import bytes_of, Place, place, speaks
from jmudsc.recipes.progress_bar import drawn


def merge(
    recipe: Place,
    output: str | None = None,
    overwrite: bool = False,
    memory: float | None = None,
    distributed: bool = False,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Merge checkpoints as a recipe says, and save the result as a checkpoint.

    A merge that was interrupted goes on where it stopped. Several processes, each
    started with this command, merge together models that one cannot hold.

    Args:
        recipe: YAML file, or its URL; `jmudsc demo` writes examples. A configuration
            of mergekit is one too.
        output: the checkpoint to write, in the place of the recipe's output.
        overwrite: replace an earlier merge at the recipe's output.
        memory: GiB that may be held; models that need more stay on disk, statistics are
            gathered in several passes. Half of the machine's memory, if not given.
        distributed: merge in several processes, which JAX finds by itself on a TPU
            slice, under SLURM and under Open MPI.
        coordinator: HOST:PORT at which the first of several processes listens.
        processes: how many processes there are.
        process: which of them this is, from 0.
    """
    from jmudsc.recipes.merge import merge_recipe

    if distributed or (coordinator, processes, process) != (None, None, None):
        from jmudsc.processes import join

        join(coordinator, processes, process)
    with drawn() as progress:
        path, text = merge_recipe(
            place(recipe),
            output=output,
            overwrite=overwrite,
            memory=bytes_of(memory),
            progress=progress,
        )
    if speaks():
        print(text)
        print(f"Wrote {path}")
