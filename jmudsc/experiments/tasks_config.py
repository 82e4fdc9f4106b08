"""Tasks config: everything that decides an experiment on tasks, as a YAML file.

```yaml
dataset: digits
tasks: [classification, autoencoding, rotation]
network: {name: resnet-encoder, width: 1, blocks: [1, 1, 1]}
training: {epochs: 20, batch_size: 50, learning_rate: 0.05}
```
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn

from jmudsc.experiments.config_readers import COMMON, count_of, network_from
from jmudsc.experiments.tasks import TASKS
from jmudsc.experiments.tasks_networks import ENCODERS
from jmudsc.experiments.training import TrainConfig
from jmudsc.matching.methods import METHODS
from jmudsc.merging.option_values import quoted, Reader
from jmudsc.paths import did_you_mean
from jmudsc.recipes.yaml_keys import read_keys, refuse


@dataclass(frozen=True)
class TaskExperiment:
    """Networks trained for different tasks on the same images, merged in pairs.

    Attributes:
        dataset: `digits`, or a name of TFDS.
        network: the trunk of all networks, an encoder.
        training: how each is trained.
        tasks: two or more of `TASKS`.
        code: channels of the bottleneck of decoders.
        train_split: of the dataset, `train[:10000]` say.
        test_split: of the dataset.
        methods: of `METHODS`.
        alphas: values of the balance of `mudsc-*`. If there are several, the one with
            the best mean scaled performance on training images is taken, without a
            refit or repair.
        repairs: what is done after averaging: `none` (but for the reset of running
            statistics), `refit`, `repair`.
        calibration: how many training images, drawn at random, activations and
            statistics are taken from, as inputs of both tasks; all, if None.
        search: how many alpha is searched on; all, if None.
    """

    dataset: str
    network: nn.Module
    training: TrainConfig
    tasks: tuple[str, ...]
    code: int = 8
    train_split: str = "train"
    test_split: str = "test"
    methods: tuple[str, ...] = METHODS
    alphas: tuple[float, ...] = (0.5,)
    repairs: tuple[str, ...] = ("none", "refit")
    calibration: int | None = None
    search: int | None = None


def has_tasks(content: Any) -> bool:
    """Whether the plain values of an experiment name tasks, not classes."""
    tasks = content.get("tasks") if isinstance(content, dict) else None
    return isinstance(tasks, list) and any(isinstance(task, str) for task in tasks)


def parse_task_experiment(
    content: Mapping[Any, Any], where: str = "experiment"
) -> TaskExperiment:
    """Build an experiment from plain values.

    Args:
        content: the keys of an experiment and their values.
        where: what to call it in an error.

    Returns:
        The experiment.

    Raises:
        ValueError: listing every key that is unknown, missing or has a wrong value.
    """
    required = ("dataset", "network", "training", "tasks")
    values, problems = read_keys(content, _READERS, required)
    refuse(where, problems)
    return TaskExperiment(**values)


def _tasks(value: Any) -> tuple[str, ...]:
    names = [str(name) for name in value]
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        raise ValueError(
            f"expected a list of some of {', '.join(TASKS)}, got "
            f"{', '.join(unknown)}{did_you_mean(unknown[0], TASKS) or '.'}"
        )
    if len(set(names)) < len(names) or len(names) < 2:
        raise ValueError(f"expected two tasks or more, each once, got {quoted(value)}.")
    return tuple(names)


_READERS: dict[str, Reader] = {
    **COMMON,
    "network": network_from(ENCODERS),
    "tasks": _tasks,
    "code": count_of("channels"),
}
