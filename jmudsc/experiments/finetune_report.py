"""Fine-tune report: written from accuracies that are kept on disk."""

from collections.abc import Sequence

import numpy as np

from jmudsc.experiments.class_split_report import machine, module_text
from jmudsc.experiments.finetune_accuracies import BASE, Run, TOGETHER, TUNED
from jmudsc.experiments.finetune_conclusions import conclusions
from jmudsc.experiments.finetune_config import FineTuneExperiment
from jmudsc.experiments.finetune_ways import LEFT_OUT
from jmudsc.tables import mean_and_std, table


def describe_finetunes(
    experiment: FineTuneExperiment,
    command: str,
    seeds: Sequence[int],
    runs: Sequence[Run],
) -> str:
    """Write the report.

    Args:
        experiment: the config.
        command: by which it was run.
        seeds: of the runs.
        runs: name of a network -> its accuracies, for each seed the same names.

    Returns:
        Markdown.
    """
    total = sum(entry.seconds for run in runs for entry in run.values())
    header = ["network", "mean of tasks", "gap closed", "scale", "seconds"]
    lines = [
        f"# {experiment.title or 'Fine-tunes'}",
        "",
        "```sh",
        command,
        "```",
        "",
        f"Test accuracy; seeds {', '.join(map(str, seeds))}; mean ± standard deviation "
        "(n - 1) over seeds. Gap closed: how much of the way from the plain average of "
        "the fine-tunes to the fine-tunes themselves, each on its own task. The scale "
        f"was chosen on {experiment.search} labelled training images of each task. "
        f"{total / 60:.0f} minutes in all on {machine()}.",
        "",
        f"- network: {module_text(experiment.network)}",
        f"- base: {experiment.base}, {experiment.base_images} images of "
        f"{experiment.digits} and of {experiment.photos} each, {experiment.side} pixels"
        f" wide, {experiment.glimpse:.0%} of them changed as one of the tasks does",
        f"- fine-tunes: {experiment.training}, {experiment.task_images} images each",
        f"- left out: {', '.join(LEFT_OUT)}, which are for two models or for "
        "checkpoints of one run",
        "",
        table(header, [_cells(name, runs) for name in (BASE, TUNED, TOGETHER)]),
        *_by_samples(experiment, runs, header),
        "",
        "By task:",
        "",
        _by_task(experiment, runs),
        "",
        *[f"- {sentence}" for sentence in conclusions(experiment.samples, runs)],
    ]
    return "\n".join(lines) + "\n"


def gap_closed(run: Run, name: str) -> float:
    """Return how much of the way from the average to the fine-tunes a network is."""
    low, high = run["linear"].mean, run[TUNED].mean
    return (run[name].mean - low) / (high - low)


def _by_samples(
    experiment: FineTuneExperiment, runs: Sequence[Run], header: list[str]
) -> list[str]:
    lines: list[str] = []
    for samples in (None, *experiment.samples):
        names = [
            name
            for name, entry in runs[0].items()
            if entry.way and entry.samples == samples
        ]
        names.sort(key=lambda name: -_mean(runs, name))
        if not names:
            continue
        what = (
            "Without images"
            if samples is None
            else f"With {samples} images of each task"
        )
        lines += ["", f"{what}:", "", table(header, [_cells(n, runs) for n in names])]
    return lines


def _mean(runs: Sequence[Run], name: str) -> float:
    return float(np.mean([run[name].mean for run in runs]))


def _cells(name: str, runs: Sequence[Run]) -> list[str]:
    entries = [run[name] for run in runs]
    scales = [entry.scale for entry in entries if entry.scale is not None]
    closed = "-"
    if "linear" in runs[0]:
        closed = f"{np.mean([gap_closed(run, name) for run in runs]):.0%}"
    return [
        entries[0].way or name,
        mean_and_std([entry.mean for entry in entries]),
        closed,
        ", ".join(f"{scale:g}" for scale in scales) or "-",
        f"{np.mean([entry.seconds for entry in entries]):.0f}",
    ]


def _by_task(experiment: FineTuneExperiment, runs: Sequence[Run]) -> str:
    shown = [BASE, TUNED, TOGETHER, *([] if "linear" not in runs[0] else ["linear"])]
    for samples in (None, *experiment.samples):
        names = [n for n, e in runs[0].items() if e.way and e.samples == samples]
        if names:
            best = max(names, key=lambda name: _mean(runs, name))
            shown += [] if best in shown else [best]
    rows = [
        [name, *(mean_and_std(column) for column in _columns(name, runs))]
        for name in shown
    ]
    return table(["network", *experiment.finetunes], rows)


def _columns(name: str, runs: Sequence[Run]) -> list[list[float]]:
    return [
        list(each) for each in zip(*(run[name].accuracies for run in runs), strict=True)
    ]
