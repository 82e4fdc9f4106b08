"""Fine-tune config: everything that decides an experiment on fine-tunes, as YAML.

```yaml
finetunes: [digits turned, digits negative, vehicles turned]
network: {name: vit, outputs: 64, patch: 4, width: 64, depth: 4, heads: 4}
base: {epochs: 10, batch_size: 100, learning_rate: 0.001, optimizer: adam}
training: {epochs: 5, batch_size: 100, learning_rate: 0.0005, optimizer: adam}
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from jmudsc.experiments.config_readers import (
    count_of,
    network_from,
    some_of,
    text,
    training,
)
from jmudsc.experiments.finetune_tasks import IMAGE_TASKS
from jmudsc.experiments.finetune_ways import WAYS
from jmudsc.experiments.models import NETWORKS
from jmudsc.experiments.training import TrainConfig
from jmudsc.merging.option_values import is_number, quoted, Reader
from jmudsc.recipes.yaml_keys import read_keys, refuse


@dataclass(frozen=True)
class FineTuneExperiment:
    """One base, fine-tuned to several tasks, and merged by every method.

    Attributes:
        finetunes: two or more of `IMAGE_TASKS`.
        network: the model of all networks.
        base: how the base is trained.
        training: how each fine-tune is trained.
        title: of the report.
        digits: the dataset of digits.
        photos: the dataset of photos.
        side: height and width of all images.
        base_images: of each kind that the base is trained on.
        glimpse: share of the base's images that are changed as one of the tasks does.
        task_images: that each fine-tune is trained on. Other images than the base's.
        test_images: the most test images of each task.
        search: training images of each task that scales are chosen on.
        samples: how many unlabelled images of each task there are, for methods that
            need them and for running statistics.
        lambdas: scales of what is added to the base, of which the best is taken.
        ways: of `WAYS`: methods with their options.
    """

    finetunes: tuple[str, ...]
    network: nn.Module
    base: TrainConfig
    training: TrainConfig
    title: str = ""
    digits: str = "mnist"
    photos: str = "cifar10"
    side: int = 16
    base_images: int = 10000
    glimpse: float = 0.03
    task_images: int = 3000
    test_images: int = 1000
    search: int = 128
    samples: tuple[int, ...] = (32, 256)
    lambdas: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.4, 2.0)
    ways: tuple[str, ...] = tuple(WAYS)


def has_finetunes(content: Any) -> bool:
    """Whether the plain values of an experiment name fine-tunes."""
    return isinstance(content, dict) and "finetunes" in content


def parse_finetunes(
    content: Mapping[Any, Any], where: str = "experiment"
) -> FineTuneExperiment:
    """Build an experiment from plain values.

    Args:
        content: the keys of an experiment and their values.
        where: what to call it in an error.

    Returns:
        The experiment.

    Raises:
        ValueError: listing every key that is unknown, missing or has a wrong value.
    """
    required = ("finetunes", "network", "base", "training")
    values, problems = read_keys(content, _READERS, required)
    refuse(where, problems)
    return FineTuneExperiment(**values)


def _tasks(value: Any) -> tuple[str, ...]:
    names = some_of(tuple(IMAGE_TASKS))(value)
    if len(set(names)) < len(names) or len(names) < 2:
        raise ValueError(f"expected two tasks or more, each once, got {quoted(value)}.")
    return names


def _counts(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or len(set(value)) < len(value):
        raise ValueError(f"expected a list of numbers, each once, got {quoted(value)}.")
    return tuple(map(count_of("images"), value))


def _share(value: Any) -> float:
    if not is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"expected a number in [0, 1], got {quoted(value)}.")
    return float(value)


def _lambdas(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or not value or not all(map(is_number, value)):
        raise ValueError(f"expected a list of numbers, got {quoted(value)}.")
    return tuple(map(float, value))


_READERS: dict[str, Reader] = {
    "finetunes": _tasks,
    "network": network_from(NETWORKS),
    "base": training,
    "training": training,
    "title": text,
    "digits": text,
    "photos": text,
    "side": count_of("pixels"),
    "base_images": count_of("images"),
    "glimpse": _share,
    "task_images": count_of("images"),
    "test_images": count_of("images"),
    "search": count_of("images"),
    "samples": _counts,
    "lambdas": _lambdas,
    "ways": some_of(tuple(WAYS)),
}
