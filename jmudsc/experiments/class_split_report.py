"""Class split report: written from scores that are kept on disk."""

import dataclasses
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jmudsc.experiments.accuracy import Scores
from jmudsc.experiments.class_split_conclusions import conclusions
from jmudsc.experiments.class_split_config import Experiment
from jmudsc.tables import mean_and_std, table


@dataclass(frozen=True)
class Entry:
    """What is known of one network.

    Attributes:
        scores: on the test images.
        seconds: it took to train it, or to match, choose alpha and merge.
        alpha: the balance it was merged by; None where that says nothing.
    """

    scores: Scores
    seconds: float
    alpha: float | None = None


def read_entries(file: Path) -> dict[str, Entry]:
    """Read the entries kept in a file; none if it is not there."""
    if not file.exists():
        return {}
    kept = json.loads(file.read_text())
    return {
        name: Entry(
            Scores(entry["joint"], tuple(entry["per_task"])),
            entry["seconds"],
            entry["alpha"],
        )
        for name, entry in kept.items()
    }


def write_entries(file: Path, entries: Mapping[str, Entry]) -> None:
    """Replace a file of entries at once."""
    content = {
        name: {
            **asdict(entry.scores),
            "seconds": round(entry.seconds, 2),
            "alpha": entry.alpha,
        }
        for name, entry in entries.items()
    }
    write_whole(file, json.dumps(content, indent=1) + "\n")


def write_whole(file: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


def describe(
    experiment: Experiment,
    command: str,
    seeds: Sequence[int],
    runs: Sequence[Mapping[str, Entry]],
) -> str:
    """Write the report.

    Args:
        experiment: the config.
        command: by which it was run.
        seeds: of the runs.
        runs: name of a network -> its entry, for each seed the same names.

    Returns:
        Markdown.
    """
    count = len(runs[0]["ensemble"].scores.per_task)
    tasks = [f"task {chr(65 + n)}" for n in range(count)]
    header = ["network", "joint", *tasks, "mean of tasks", "alpha", "seconds"]
    rows = [_cells(name, [run[name] for run in runs]) for name in runs[0]]
    total = sum(entry.seconds for run in runs for entry in run.values())
    scores = [{name: entry.scores for name, entry in run.items()} for run in runs]
    lines = [
        f"# {experiment.title or experiment.dataset}",
        "",
        "```sh",
        command,
        "```",
        "",
        f"Test accuracy; seeds {', '.join(map(str, seeds))}; "
        "mean ± standard deviation (n - 1). Joint: the right class among all; task: "
        "among those of the task. alpha was chosen on training images. "
        f"{total / 60:.0f} minutes in all on {machine()}.",
        "",
        f"- network: {module_text(experiment.network)}",
        f"- training: {experiment.training}",
        f"- splits: {experiment.train_split}, {experiment.test_split}",
        f"- tasks: {_plain(experiment.tasks)}",
        f"- images for activations: {experiment.calibration or 'all'}, to choose alpha "
        f"on: {experiment.search or 'all'}",
        "",
        table(header, rows),
        "",
        *[f"- {sentence}" for sentence in conclusions(scores)],
    ]
    return "\n".join(lines) + "\n"


def machine() -> str:
    """Describe what this runs on."""
    device = jax.devices()[0]
    kind = (
        "CPU cores"
        if device.platform == "cpu"
        else f"CPU cores and {device.device_kind}"
    )
    return (
        f"{os.cpu_count()} {kind}, jax {jax.__version__}, Python "
        f"{platform.python_version()}"
    )


def _cells(name: str, entries: Sequence[Entry]) -> list[str]:
    scores = [entry.scores for entry in entries]
    columns = [
        [each.joint for each in scores],
        *zip(*[each.per_task for each in scores], strict=True),
        [each.mean for each in scores],
    ]
    alphas = [entry.alpha for entry in entries if entry.alpha is not None]
    alpha = ", ".join(f"{alpha:g}" for alpha in alphas) or "-"
    seconds = f"{np.mean([entry.seconds for entry in entries]):.0f}"
    return [name, *map(mean_and_std, columns), alpha, seconds]


def module_text(network: nn.Module) -> str:
    """Write a module as it is written in code, on one line."""
    fields = [f.name for f in dataclasses.fields(network)]
    shown = [n for n in fields if n not in ("parent", "name")]
    values = ", ".join(f"{name}={getattr(network, name)!r}" for name in shown)
    return f"{type(network).__name__}({values})"


def _plain(tasks: int | tuple[tuple[int, ...], ...]) -> str:
    if isinstance(tasks, int):
        return f"{tasks} random parts of the classes, others for each seed"
    return "; ".join(" ".join(map(str, task)) for task in tasks)
