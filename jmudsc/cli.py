"""The command line: one function a command, no arithmetic.

Everything that takes long to import is imported inside the commands, so that help
comes at once.
"""

import contextlib
import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import tyro


def demo(
    out: Path = Path("jmudsc-demo"),
    networks: tuple[str, ...] = ("mlp", "resnet20"),
    seeds: tuple[int, ...] = (0,),
) -> None:
    """Train two pairs of networks apart on real digits and merge them by every method.

    Prints a table of accuracies; writes checkpoints, recipes and a report.

    Args:
        out: directory to make.
        networks: which networks to train: mlp, resnet20.
        seeds: one pair of each network is trained for every seed.
    """
    from jmudsc.experiments.extra import check_extra

    check_extra("demo")
    from jmudsc.experiments.demo import run_demo

    with _progress() as progress:
        text = run_demo(out, networks, seeds, progress)
    print(text)
    print(f"Wrote {out}/report.md, and checkpoints and recipes beside it.")


def merge(
    recipe: Annotated[Path, tyro.conf.Positional],
    overwrite: bool = False,
    memory: float | None = None,
) -> None:
    """Merge checkpoints as a recipe says, and save the result as a checkpoint.

    Started again, it goes on where it was stopped.

    Args:
        recipe: YAML file; `jmudsc demo` writes examples.
        overwrite: replace an earlier merge at the recipe's output.
        memory: GiB that the models may take; more are left on disk and read leaf by
            leaf. Half of what the machine has, if not given.
    """
    from jmudsc.recipes.merge import cook

    with _progress() as progress:
        path, text = cook(
            recipe, overwrite=overwrite, memory=_bytes(memory), progress=progress
        )
    print(text)
    print(f"Wrote {path}")


def plan(
    recipe: Annotated[Path, tyro.conf.Positional],
    overwrite: bool = False,
    memory: float | None = None,
) -> None:
    """Tell what a recipe would do and take, and all that is wrong with it.

    Reads no array of a checkpoint. Ends with status 1 if anything is wrong.

    Args:
        recipe: YAML file.
        overwrite: allow an earlier merge at the recipe's output.
        memory: GiB that the models may take, as for merge.
    """
    from jmudsc.recipes.plan import plan
    from jmudsc.recipes.plan_report import plan_report

    with _progress() as progress:
        found = plan(
            recipe, overwrite=overwrite, memory=_bytes(memory), progress=progress
        )
    print(plan_report(found), end="")
    if found.problems:
        sys.exit(1)


def spec(recipe: Annotated[Path, tyro.conf.Positional]) -> None:
    """Print the permutation spec of a recipe's model as a table.

    Args:
        recipe: YAML file.
    """
    from jmudsc.recipes.merge import spec_of

    with _progress() as progress:
        found = spec_of(recipe, progress)
    print(found)


def experiment(
    config: Annotated[Path, tyro.conf.Positional],
    seeds: tuple[int, ...] = (0,),
    out: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Train networks apart as a config says, merge them every way, and score them all.

    Prints a table of accuracies. Started again, it goes on where it was stopped.

    Args:
        config: YAML file; configs/ has some.
        seeds: everything is done anew for every seed.
        out: directory of networks, scores and the report; runs/NAME if not given.
        data_dir: where TFDS keeps its datasets, if not in its own place.
    """
    from jmudsc.experiments.extra import check_extra

    check_extra("experiment")
    from jmudsc.experiments.class_split import run_experiment

    with _progress() as progress:
        path, text = run_experiment(config, seeds, out, data_dir, progress)
    print(text)
    print(f"Wrote {path}")


def evaluate(
    recipe: Annotated[Path, tyro.conf.Positional], checkpoint: str | None = None
) -> None:
    """Measure a merged network and its parents by a recipe's losses and score.

    Args:
        recipe: YAML file with `losses` or `score`.
        checkpoint: the merged network, if not the recipe's output.
    """
    from jmudsc.recipes.evaluate import score_recipe

    with _progress() as progress:
        text = score_recipe(recipe, checkpoint, progress)
    print(text)


def landscape(
    recipe: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    points: int = 21,
    overwrite: bool = False,
) -> None:
    """Draw the losses around and between the networks of a merge, and its barriers.

    Args:
        recipe: YAML file with `losses`, merged already.
        out: directory to make; if not given, the recipe's output and `-landscape`.
        points: of the plane along each axis, and of the line between the parents.
        overwrite: replace an earlier landscape.
    """
    from jmudsc.recipes.landscape import survey

    with _progress() as progress:
        path, text = survey(
            recipe, out=out, points=points, overwrite=overwrite, progress=progress
        )
    print(text)
    print(f"Wrote {path}")


def main() -> None:
    """Run the command line."""
    logging.basicConfig(format="%(message)s")
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "demo": demo,
                "evaluate": evaluate,
                "experiment": experiment,
                "landscape": landscape,
                "merge": merge,
                "plan": plan,
                "spec": spec,
            },
            prog="jmudsc",
            description="Merge networks trained apart, with no training.",
        )
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"jmudsc: {error}")
    except KeyboardInterrupt:
        sys.exit("jmudsc: interrupted; merge and experiment go on if started again.")


def _bytes(gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 <= gib < math.inf:
        raise ValueError(f"--memory is {gib}, needed a number of GiB, 0 or more.")
    return int(gib * 2**30)


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """Draw a bar per stage on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    # Markup is imported when it is drawn, by a thread, and TFDS patches imports.
    text = TextColumn("{task.description}", markup=False)
    columns = text, BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task("starting", total=None)
        stage_now = ""

        def progress(stage: str, done: int, total: int | None) -> None:
            nonlocal task, stage_now
            name = stage.partition(" (")[0]
            if name != stage_now:
                bars.remove_task(task)
                task, stage_now = bars.add_task(stage, total=total), name
            bars.update(task, description=stage, completed=done, total=total)

        yield progress
