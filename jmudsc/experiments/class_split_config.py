"""Class split config: everything that decides an experiment, as a YAML file.

```yaml
dataset: mnist
tasks: 2                        # random halves of the classes; or [[0, 1], [2, 3, 4]]
network: {name: mlp, widths: [256, 256], outputs: 64}
training: {epochs: 5, batch_size: 100, learning_rate: 0.1}
methods: [average, mudsc-zip]   # optional, and so is what follows: see Experiment
calibration: 5000
```
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn

from jmudsc.experiments.config_readers import (
    COMMON,
    is_count,
    network_from,
    REPAIRS,
    some_of,
    text,
)
from jmudsc.experiments.finetune_config import (
    FineTuneExperiment,
    has_finetunes,
    parse_finetunes,
)
from jmudsc.experiments.models import NETWORKS
from jmudsc.experiments.tasks_config import (
    has_tasks,
    parse_task_experiment,
    TaskExperiment,
)
from jmudsc.experiments.training import TrainConfig
from jmudsc.matching.methods import METHODS
from jmudsc.matching.multi_model import REFERENCES
from jmudsc.merging.alpha_search import ALPHAS
from jmudsc.merging.option_values import quoted, Reader
from jmudsc.recipes.yaml_keys import read_keys, read_yaml, refuse

_REPAIRS = (*REPAIRS, "refit by task")


@dataclass(frozen=True)
class Experiment:
    """Networks trained apart on parts of the classes of one dataset, and merged.

    Attributes:
        dataset: `digits`, or a name of TFDS.
        network: the model of all networks.
        training: how each is trained.
        title: of the report.
        tasks: the classes of each network, or into how many random parts of one size
            (but for one class) every seed cuts them.
        train_split: of the dataset, `train[:10000]` say.
        test_split: of the dataset.
        methods: of `METHODS`.
        alphas: values of the balance, of which `mudsc-*` takes the one with the best
            accuracy on training images.
        references: for more than two tasks, what `*-align` aligns to.
        repairs: what is done after averaging: `none` (but for the reset of running
            statistics), `repair`, `refit` to the mean of the parents, `refit by task`
            to the parent whose task an image is from.
        calibration: how many training images, drawn at random, activations and
            statistics are taken from; all, if None.
        search: how many alpha is searched on; all, if None.
    """

    dataset: str
    network: nn.Module
    training: TrainConfig
    title: str = ""
    tasks: int | tuple[tuple[int, ...], ...] = 2
    train_split: str = "train"
    test_split: str = "test"
    methods: tuple[str, ...] = METHODS
    alphas: tuple[float, ...] = ALPHAS
    references: tuple[str, ...] = ("first",)
    repairs: tuple[str, ...] = ("none", "refit", "refit by task")
    calibration: int | None = None
    search: int | None = None


def read_experiment(
    path: str | os.PathLike[str],
) -> Experiment | TaskExperiment | FineTuneExperiment:
    """Read an experiment and check all of it.

    Args:
        path: a YAML file.

    Returns:
        The experiment; one on several tasks if its `tasks` are names, one on
        fine-tunes if it has `finetunes`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML mapping, or listing every key that is unknown,
            missing or has a wrong value.
    """
    path = Path(path)
    content = read_yaml(path, "the config of an experiment")
    if has_finetunes(content):
        return parse_finetunes(content, str(path))
    parse = parse_task_experiment if has_tasks(content) else parse_experiment
    return parse(content, str(path))


def parse_experiment(content: Any, where: str = "experiment") -> Experiment:
    """Build an experiment from plain values.

    Args:
        content: the keys of an experiment and their values.
        where: what to call it in an error.

    Returns:
        The experiment.

    Raises:
        ValueError: listing every key that is unknown, missing or has a wrong value.
    """
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise ValueError(
            f"{where}: expected a mapping of keys to values, got a {kind}."
        )
    required = ("dataset", "network", "training")
    values, problems = read_keys(content, _READERS, required)
    refuse(where, problems)
    return Experiment(**values)


def _tasks(value: Any) -> int | tuple[tuple[int, ...], ...]:
    if is_count(value, 2):
        return value
    lists = isinstance(value, list) and len(value) > 1
    if not lists or not all(isinstance(t, list) and t for t in value):
        raise ValueError(
            "expected a number of tasks, or a list of classes for each, two or more, "
            f"got {quoted(value)}."
        )
    classes = [c for task in value for c in task]
    if not all(is_count(c, 0) for c in classes) or len(set(classes)) < len(classes):
        raise ValueError(f"expected every class once, got {quoted(value)}.")
    return tuple(map(tuple, value))


_READERS: dict[str, Reader] = {
    **COMMON,
    "title": text,
    "network": network_from(NETWORKS),
    "tasks": _tasks,
    "references": some_of(REFERENCES),
    "repairs": some_of(_REPAIRS),
}
