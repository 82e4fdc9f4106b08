"""Tasks report: written from losses that are kept on disk."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jmudsc.experiments.class_split_report import module_text, write_whole
from jmudsc.experiments.scaled_performance import scaled_performance
from jmudsc.experiments.tasks_config import TaskExperiment
from jmudsc.tables import mean_and_std, table

CONSTANT = "constant"


@dataclass(frozen=True)
class Losses:
    """What is known of one network, or of two heads on one trunk.

    Attributes:
        losses: task -> mean loss over the test images.
        seconds: it took to train it, or to match, choose alpha and merge.
        alpha: the balance it was merged by; None where that says nothing.
    """

    losses: Mapping[str, float]
    seconds: float = 0.0
    alpha: float | None = None


Run = Mapping[str, Losses]


def read_losses(file: Path) -> dict[str, Losses]:
    """Read the losses kept in a file; none if it is not there."""
    if not file.exists():
        return {}
    kept = json.loads(file.read_text())
    return {name: Losses(**entry) for name, entry in kept.items()}


def write_losses(file: Path, entries: Run) -> None:
    """Replace a file of losses at once."""
    content = {name: asdict(entry) for name, entry in entries.items()}
    write_whole(file, json.dumps(content, indent=1) + "\n")


def pairs_of(tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return all pairs of tasks."""
    return itertools.combinations(tasks, 2)


def parent_name(task: str) -> str:
    """Name the network trained for a task."""
    return f"parent {task}"


def merge_name(pair: tuple[str, str], row: str) -> str:
    """Name what a row of the report makes of a pair."""
    return f"{' + '.join(pair)}: {row}"


def rows_of(experiment: TaskExperiment) -> list[str]:
    """Name the methods, with what is done after averaging, in the report's order."""
    chosen = itertools.product(experiment.methods, experiment.repairs)
    return [row_name(method, repair) for method, repair in chosen]


def row_name(method: str, repair: str) -> str:
    """Name a method and what is done after averaging."""
    return method if repair == "none" else f"{method} + {repair}"


def scaled(run: Run, name: str, task: str) -> float:
    """Return the scaled performance of a network of a run on a task."""
    constant = run[CONSTANT].losses[task]
    parent = run[parent_name(task)].losses[task]
    return scaled_performance(constant, parent, run[name].losses[task])


def describe_tasks(
    experiment: TaskExperiment, command: str, seeds: Sequence[int], runs: Sequence[Run]
) -> str:
    """Write the report.

    Args:
        experiment: the config.
        command: by which it was run.
        seeds: of the runs.
        runs: name of a network -> its losses, for each seed the same names.

    Returns:
        Markdown.
    """
    total = sum(entry.seconds for run in runs for entry in run.values())
    lines = [
        f"# {experiment.dataset}: {', '.join(experiment.tasks)}",
        "",
        "```sh",
        command,
        "```",
        "",
        "Scaled performance on test images: 1 is as good as the network trained for "
        "the task alone, 0 as good as the best constant. Every pair of tasks is merged "
        "but for the heads; a task's value is the mean over its pairs. Seeds "
        f"{', '.join(map(str, seeds))}; mean ± standard deviation (n - 1) over seeds. "
        f"{total / 60:.0f} minutes in all.",
        "",
        f"- trunk: {module_text(experiment.network)}",
        f"- training: {experiment.training}",
        f"- splits: {experiment.train_split}, {experiment.test_split}",
        f"- alpha: {', '.join(f'{alpha:g}' for alpha in experiment.alphas)}",
        "",
        _of_methods(experiment, runs),
        "",
        "Pairs, mean of both tasks:",
        "",
        _of_pairs(experiment, runs),
        "",
        "Losses of the parents (cross-entropy where there are answers, else the mean "
        "square) and of the best constants:",
        "",
        _of_parents(experiment, runs),
    ]
    return "\n".join(lines) + "\n"


def _of_methods(experiment: TaskExperiment, runs: Sequence[Run]) -> str:
    tasks = experiment.tasks
    rows = []
    for row in rows_of(experiment):
        means = np.array(
            [[_over_pairs(run, row, t, tasks) for t in tasks] for run in runs]
        )
        names = [merge_name(pair, row) for pair in pairs_of(tasks)]
        entries = [run[name] for run in runs for name in names]
        alphas = [entry.alpha for entry in entries if entry.alpha is not None]
        columns = [*means.T.tolist(), means.mean(axis=1).tolist()]
        rows.append(
            [
                row,
                *map(mean_and_std, columns),
                f"{np.mean(alphas):.2f}" if alphas else "-",
                f"{np.mean([entry.seconds for entry in entries]):.1f}",
            ]
        )
    return table(["network", *tasks, "mean", "mean alpha", "seconds a pair"], rows)


def _over_pairs(run: Run, row: str, task: str, tasks: Sequence[str]) -> float:
    names = [merge_name(pair, row) for pair in pairs_of(tasks) if task in pair]
    return float(np.mean([scaled(run, name, task) for name in names]))


def _of_pairs(experiment: TaskExperiment, runs: Sequence[Run]) -> str:
    names = rows_of(experiment)
    rows = []
    for pair in pairs_of(experiment.tasks):
        cells = [" + ".join(pair)]
        for row in names:
            name = merge_name(pair, row)
            both = [[scaled(run, name, task) for task in pair] for run in runs]
            cells.append(f"{np.mean(both):.3f}")
        rows.append(cells)
    return table(["pair", *names], rows)


def _of_parents(experiment: TaskExperiment, runs: Sequence[Run]) -> str:
    rows = []
    for task in experiment.tasks:
        own = [run[parent_name(task)] for run in runs]
        constants = [run[CONSTANT].losses[task] for run in runs]
        seconds = np.mean([entry.seconds for entry in own])
        losses = [entry.losses[task] for entry in own]
        texts = map(mean_and_std, (losses, constants))
        rows.append([task, *texts, f"{seconds:.0f}"])
    return table(["task", "parent", "best constant", "seconds"], rows)
