"""Command line: one function a command, no arithmetic.

JAX, numpy and whatever needs them are imported inside the commands, so that help comes
at once.
"""

import importlib.metadata
import logging
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jmudsc.compiled import cache_settings
from jmudsc.recipes.progress_bar import drawn

_DESCRIPTION = (
    "Merge networks trained apart, with no training. `jmudsc COMMAND --help` explains "
    "a command, `jmudsc --version` prints the version."
)

_File = Annotated[Path, tyro.conf.Positional]
# A path or a URL: Path would take `s3://bucket` for a folder of the name `s3:`.
_Place = Annotated[str, tyro.conf.Positional]


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

    with drawn() as progress:
        text = run_demo(out, networks, seeds, progress)
    print(text)
    print(f"Wrote {out}/report.md, and checkpoints and recipes beside it.")


def merge(
    recipe: _Place,
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
            _place(recipe),
            output=output,
            overwrite=overwrite,
            memory=_bytes(memory),
            progress=progress,
        )
    if _speaks():
        print(text)
        print(f"Wrote {path}")


def plan(
    recipe: _Place,
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
            _place(recipe),
            output=output,
            overwrite=overwrite,
            memory=_bytes(memory),
            progress=progress,
        )
    print(plan_report(planned), end="")
    if planned.problems:
        sys.exit(1)


def spec(recipe: _Place) -> None:
    """Print the permutation spec of a recipe's model as a table.

    Args:
        recipe: YAML file.
    """
    from jmudsc.recipes.merge import spec_of

    with drawn() as progress:
        derived = spec_of(_place(recipe), progress)
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

    with drawn() as progress:
        path, text = run_experiment(config, seeds, out, data_dir, progress)
    print(text)
    print(f"Wrote {path}")


def evaluate(recipe: _Place, checkpoint: str | None = None) -> None:
    """Judge a merged network beside its parents, by a recipe's losses and score too.

    Args:
        recipe: YAML file.
        checkpoint: the merged network, if not the recipe's output.
    """
    from jmudsc.recipes.evaluate import evaluate_recipe

    with drawn() as progress:
        text = evaluate_recipe(_place(recipe), checkpoint, progress)
    print(text)


def landscape(
    recipe: _Place,
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
            _place(recipe),
            out=out,
            points=points,
            overwrite=overwrite,
            progress=progress,
        )
    print(text)
    print(f"Wrote {path}")


def soup(
    run: _Place,
    out: str,
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
        run: directory of the run, or its URL, with a directory for each step.
        out: the checkpoint to write: a directory, or a .safetensors, .npz or .msgpack
            file, or a URL of one.
        last: how many of the last steps to take; all if neither last nor steps is
            given.
        steps: which steps to take.
        weights: the share of each step; greedy keeps those that make the score better.
        decay: of ema a number in (0, 1); of wsm linear or minus-sqrt.
        score: for greedy, module:name of a function of variables, larger for better
            ones; the module may lie in the current directory.
        overwrite: replace an earlier merge at out.
    """
    from jmudsc.finetunes.run_soup import read_decay, soup_of_run
    from jmudsc.merging.save_result import save
    from jmudsc.recipes.import_path import read_import_path, resolve

    judge = None if score is None else resolve(read_import_path(score), Path.cwd())
    result = soup_of_run(
        run,
        last=last,
        steps=steps or None,
        weights=weights,
        decay=read_decay(decay),
        score=judge,
    )
    save(out, result, overwrite=overwrite)
    print(f"Averaged the steps {', '.join(map(str, result.recipe['steps']))}.")
    print(f"Wrote {out}")


def lora(
    adapters: Annotated[tuple[Path, ...], tyro.conf.Positional],
    base: Path,
    out: Path,
    method: str | None = None,
    space: Literal["full", "knots", "core"] = "full",
    rank: int | None = None,
    weights: tuple[float, ...] = (),
    scale: float | None = None,
    options: tuple[str, ...] = (),
    rename: tuple[str, ...] = (),
    axes: tuple[str, ...] = (),
    seed: int = 0,
    shard_size: int = 5 * 10**9,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Fold a LoRA adapter into its base, or merge several adapters of one base.

    Writes the base with what the adapters become folded in, or one adapter of the rank
    that is asked for. The base is read, and written, leaf by leaf. Of a base that is
    the directory of a Hugging Face model such a directory comes, unless out has an
    ending.

    Args:
        adapters: folders as PEFT writes them.
        base: the checkpoint that they were trained on.
        out: the checkpoint to write, a directory or a .safetensors, .npz or .msgpack
            file; with a rank the folder of an adapter.
        method: how to merge what the adapters add to each leaf, one of the methods of
            merge_finetunes that need no data; task_arithmetic (the sum) if not given.
        space: in which numbers low-rank updates are merged.
        rank: write one adapter of this rank.
        weights: how much each adapter counts, one for each.
        scale: what is added to the base is times this (lambda_).
        options: of the method, NAME=VALUE, such as density=0.2.
        rename: OLD=NEW, pattern of names in the adapters and path in the base.
        axes: PATTERN=LETTERS, the axes of leaves whose names do not tell.
        seed: for methods that draw numbers.
        shard_size: how many bytes a file of a Hugging Face directory holds at most.
        tokenizer: the directory that the tokenizer of such a directory is copied from,
            if not the base.
        overwrite: replace an earlier merge at out.
    """
    from jmudsc.lora.command import Command, pairs, read_options, run

    command = Command(
        method,
        space,
        rank,
        read_options(options, weights),
        scale,
        pairs("rename", rename),
        pairs("axes", axes),
        seed,
        overwrite,
        shard_size,
        tokenizer,
    )
    print(run(adapters, base, out, command))
    print(f"Wrote {out}")


COMMANDS = {
    command.__name__: command
    for command in (
        demo,
        evaluate,
        experiment,
        landscape,
        lora,
        merge,
        plan,
        soup,
        spec,
    )
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
        sys.exit(f"jmudsc: {_told(error)}")
    except KeyboardInterrupt:
        sys.exit(
            "jmudsc: interrupted. Start merge or experiment again to go on from here."
        )


def _place(text: str) -> Any:
    """Return the path that a text or a URL names."""
    from jmudsc.checkpoints.urls import path_of

    return path_of(text)


def _told(error: Exception) -> str:
    """Return what an error says, of URLs where it is about copies of them."""
    from jmudsc.checkpoints.urls import by_urls

    return by_urls(str(error))


def _speaks() -> bool:
    """Whether this process prints: the only one, or the first of several."""
    from jmudsc.processes import is_first

    return is_first()


def _bytes(gib: float | None) -> int | None:
    if gib is None:
        return None
    if not 0 <= gib < math.inf:
        raise ValueError(
            f"--memory: expected a number of GiB, 0 or more, got {gib}. Leave it out "
            "for half of the machine's memory."
        )
    return int(gib * 2**30)
