"""Command line: one function a command, no arithmetic.

JAX, numpy and whatever needs them are imported inside the commands, so that help comes
at once.
"""

import contextlib
import importlib.metadata
import logging
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jmudsc.compiled import cache_settings

_DESCRIPTION = (
    "Merge networks trained apart, with no training. `jmudsc COMMAND --help` explains "
    "a command, `jmudsc --version` prints the version."
)

_File = Annotated[Path, tyro.conf.Positional]


def demo(
    out: Path = Path("jmudsc-demo"),
    networks: tuple[str, ...] = ("mlp", "resnet20"),
    seeds: tuple[int, ...] = (0,),
) -> None:
    """Train pairs of networks apart on real digits and merge them by every method.

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
    recipe: _File,
    output: Path | None = None,
    overwrite: bool = False,
    memory: float | None = None,
) -> None:
    """Merge checkpoints as a recipe says, and save the result as a checkpoint.

    A merge that was interrupted goes on where it stopped.

    Args:
        recipe: YAML file; `jmudsc demo` writes examples. A configuration of mergekit
            is one too.
        output: the checkpoint to write, in the place of the recipe's output.
        overwrite: replace an earlier merge at the recipe's output.
        memory: GiB that the models may take; models that need more stay on disk and
            are read leaf by leaf. Half of the machine's memory, if not given.
    """
    from jmudsc.recipes.merge import merge_recipe

    with _progress() as progress:
        path, text = merge_recipe(
            recipe,
            output=output,
            overwrite=overwrite,
            memory=_bytes(memory),
            progress=progress,
        )
    print(text)
    print(f"Wrote {path}")


def plan(
    recipe: _File,
    output: Path | None = None,
    overwrite: bool = False,
    memory: float | None = None,
) -> None:
    """Show what a merge would do and what it would take, and all that is wrong.

    Reads no arrays. The exit status is 1 if anything is wrong.

    Args:
        recipe: YAML file; of a configuration of mergekit the translation is shown.
        output: the checkpoint to write, in the place of the recipe's output.
        overwrite: allow an earlier merge at the recipe's output.
        memory: GiB that the models may take, as for merge.
    """
    from jmudsc.recipes.plan import plan_recipe
    from jmudsc.recipes.plan_report import plan_report

    with _progress() as progress:
        planned = plan_recipe(
            recipe,
            output=output,
            overwrite=overwrite,
            memory=_bytes(memory),
            progress=progress,
        )
    print(plan_report(planned), end="")
    if planned.problems:
        sys.exit(1)


def spec(recipe: _File) -> None:
    """Print the permutation spec of a recipe's model as a table.

    Args:
        recipe: YAML file.
    """
    from jmudsc.recipes.merge import spec_of

    with _progress() as progress:
        derived = spec_of(recipe, progress)
    print(derived)


def experiment(
    config: _File,
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

    with _progress() as progress:
        path, text = run_experiment(config, seeds, out, data_dir, progress)
    print(text)
    print(f"Wrote {path}")


def evaluate(recipe: _File, checkpoint: str | None = None) -> None:
    """Measure a merged network and its parents by a recipe's losses and score.

    Args:
        recipe: YAML file with `losses` or `score`.
        checkpoint: the merged network, if not the recipe's output.
    """
    from jmudsc.recipes.evaluate import evaluate_recipe

    with _progress() as progress:
        text = evaluate_recipe(recipe, checkpoint, progress)
    print(text)


def landscape(
    recipe: _File,
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

    with _progress() as progress:
        path, text = draw_landscape(
            recipe, out=out, points=points, overwrite=overwrite, progress=progress
        )
    print(text)
    print(f"Wrote {path}")


def soup(
    run: _File,
    out: Path,
    last: int | None = None,
    steps: tuple[int, ...] = (),
    weights: Literal["mean", "ema", "wsm", "greedy"] = "mean",
    decay: str | None = None,
    score: str | None = None,
    overwrite: bool = False,
) -> None:
    """Average checkpoints of one training run, and save the result as a checkpoint.

    Takes params and batch_stats, never the state of an optimizer. Running statistics
    are averaged with the rest.

    Args:
        run: directory of the run, with a directory for each step.
        out: the checkpoint to write: a directory, or a .safetensors, .npz or .msgpack
            file.
        last: how many of the last steps to take; all if neither last nor steps is
            given.
        steps: which steps to take.
        weights: the share of each step; greedy keeps those that make the score better.
        decay: of ema a number in (0, 1); of wsm linear or minus-sqrt.
        score: for greedy, module:name of a function of variables, larger for better
            ones; the module may lie in the current directory.
        overwrite: replace an earlier merge at out.
    """
    from jmudsc.finetunes.run_soup import soup_of_run
    from jmudsc.merging.save_result import save
    from jmudsc.recipes.import_path import read_import_path, resolve

    judge = None if score is None else resolve(read_import_path(score), Path.cwd())
    result = soup_of_run(
        run,
        last=last,
        steps=steps or None,
        weights=weights,
        decay=_number_or_name(decay),
        score=judge,
    )
    save(out, result, overwrite=overwrite)
    print(f"Averaged the steps {', '.join(map(str, result.recipe['steps']))}.")
    print(f"Wrote {out}")


COMMANDS = {
    command.__name__: command
    for command in (demo, evaluate, experiment, landscape, merge, plan, soup, spec)
}


def main() -> None:
    """Run the command line."""
    if sys.argv[1:] == ["--version"]:
        print(f"jmudsc {importlib.metadata.version('jmudsc')}")
        return
    logging.basicConfig(format="%(message)s")
    os.environ.update(cache_settings(os.environ))  # JAX is not imported yet
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="jmudsc", description=_DESCRIPTION
        )
    except (ValueError, TypeError, OSError) as error:
        sys.exit(f"jmudsc: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "jmudsc: interrupted. Start merge or experiment again to go on from here."
        )


def _number_or_name(text: str | None) -> float | str | None:
    try:
        return text if text is None else float(text)
    except ValueError:
        return text


def _bytes(gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 <= gib < math.inf:
        raise ValueError(
            f"--memory: expected a number of GiB, 0 or more, got {gib}. Leave it out "
            "for half of the machine's memory."
        )
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
