"""Experiment: networks trained apart as a config says, merged every way."""

from pathlib import Path

from jmudsc.commands.values import File
from jmudsc.recipes.progress_bar import drawn


def experiment(
    config: File,
    seeds: tuple[int, ...] = (0,),
    out: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Train networks apart as a config says, merge them every way, and score them all.

    Prints a table of accuracies. An experiment that was interrupted goes on where it
    stopped.

    Args:
        config: YAML file; there are some in configs/.
        seeds: everything is done anew for every seed.
        out: directory of networks, scores and the report; runs/NAME if not given.
        data_dir: where TFDS keeps its datasets, if not in its own place; or an .npz
            file of packed datasets.
    """
    from jmudsc.experiments.extra import check_extra

    check_extra("experiment", packed=data_dir is not None and data_dir.suffix == ".npz")
    from jmudsc.experiments.class_split import run_experiment

    with drawn() as progress:
        path, text = run_experiment(config, seeds, out, data_dir, progress)
    print(text)
    print(f"Wrote {path}")
