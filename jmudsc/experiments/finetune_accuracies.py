"""Fine-tune accuracies: what is known of every network, kept on disk."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jmudsc.experiments.class_split_report import write_whole

BASE, TUNED, TOGETHER = "base", "single fine-tunes", "all tasks at once"


@dataclass(frozen=True)
class Tuned:
    """What is known of one network; of the fine-tunes, of each on its own task.

    Attributes:
        accuracies: of each task, on test images.
        way: what it was merged by; empty for what was trained.
        samples: unlabelled images of each task that were used; None for none.
        scale: of what was added to the base; None if there was none to choose.
        seconds: it took to train, or to choose the scale and merge.
    """

    accuracies: tuple[float, ...]
    way: str = ""
    samples: int | None = None
    scale: float | None = None
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """The mean over tasks."""
        return sum(self.accuracies) / len(self.accuracies)


Run = Mapping[str, Tuned]


def read_tuned(file: Path) -> dict[str, Tuned]:
    """Read the accuracies kept in a file; none if it is not there."""
    if not file.exists():
        return {}
    kept = json.loads(file.read_text())
    return {
        name: Tuned(**{**entry, "accuracies": tuple(entry["accuracies"])})
        for name, entry in kept.items()
    }


def write_tuned(file: Path, entries: Run) -> None:
    """Replace a file of accuracies at once."""
    content = {name: asdict(entry) for name, entry in entries.items()}
    write_whole(file, json.dumps(content, indent=1) + "\n")
