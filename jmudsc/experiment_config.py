"""Everything that decides an experiment, as a YAML file.

```yaml
dataset: mnist
tasks: 2                        # random halves of the classes; or [[0, 1], [2, 3, 4]]
network: {name: mlp, widths: [256, 256], outputs: 64}
training: {epochs: 5, batch_size: 100, learning_rate: 0.1}
methods: [average, mudsc-zip]   # optional, and so is what follows: see Experiment
calibration: 5000
```
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any

import flax.linen as nn

from jmudsc.balance import ALPHAS
from jmudsc.keys import is_number, read_keys, read_yaml, Reader, refuse
from jmudsc.match import METHODS
from jmudsc.models import NETWORKS
from jmudsc.paths import did_you_mean
from jmudsc.references import REFERENCES
from jmudsc.training import TrainConfig

FINISHES = ("none", "repair", "refit", "refit by task")


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
        finishes: what is done after averaging: `none` (but for the reset of running
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
    finishes: tuple[str, ...] = ("none", "refit", "refit by task")
    calibration: int | None = None
    search: int | None = None


def read_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read an experiment and check all of it.

    Args:
        path: a YAML file.

    Returns:
        The experiment.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML mapping, or listing every key that is unknown,
            missing or has a wrong value.
    """
    path = Path(path)
    content = read_yaml(path, "an experiment is needed; see configs/.")
    return parse_experiment(content, str(path))


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
        raise ValueError(f"{where}: is a {kind}, a mapping of keys is needed.")
    required = ("dataset", "network", "training")
    values, problems = read_keys(content, _READERS, required)
    refuse(where, problems)
    return Experiment(**values)


def _network(value: Any) -> nn.Module:
    name = str(value.get("name")) if isinstance(value, dict) else "none"
    if name not in NETWORKS:
        hint = did_you_mean(name, NETWORKS)
        raise ValueError(
            f"has the name {name}{hint}; it must be one of {', '.join(NETWORKS)}"
        )
    return _built(NETWORKS[name], {k: v for k, v in value.items() if k != "name"})


def _training(value: Any) -> TrainConfig:
    if not isinstance(value, dict):
        raise ValueError(f"is {value!r}, it must be a mapping of keys to values")
    return _built(TrainConfig, value)


def _built(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a dataclass from plain values, or say all that does not fit."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    fields = {n: f for n, f in fields.items() if n not in ("parent", "name")}
    problems, fitting = [], {n: _frozen(v) for n, v in values.items()}
    for name, value in fitting.items():
        if name not in fields:
            problems.append(f"has no key {name!r}{did_you_mean(str(name), fields)}")
        elif not _fits(value, fields[name].type):
            wanted = getattr(fields[name].type, "__name__", fields[name].type)
            problems.append(f"has {name}: {values[name]!r}, needed is {wanted}")
    problems += [
        f"lacks {name}"
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if problems:
        raise ValueError("; ".join(problems))
    floats = {n for n in fitting if fields[n].type is float}
    return kind(**{n: float(v) if n in floats else v for n, v in fitting.items()})


def _frozen(value: Any) -> Any:
    """Turn lists into tuples, which can be hashed."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return is_number(value)
    if isinstance(kind, type | UnionType):
        return isinstance(value, kind) and not isinstance(value, bool)
    return isinstance(value, tuple)


def _is_count(value: Any, least: int) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and value >= least


def _tasks(value: Any) -> int | tuple[tuple[int, ...], ...]:
    if _is_count(value, 2):
        return value
    lists = isinstance(value, list) and len(value) > 1
    if not lists or not all(isinstance(t, list) and t for t in value):
        raise ValueError(f"is {value!r}, it must be a number or lists, two or more")
    classes = [c for task in value for c in task]
    if not all(_is_count(c, 0) for c in classes) or len(set(classes)) < len(classes):
        raise ValueError(f"is {value!r}, it must have each class number once")
    return tuple(map(tuple, value))


def _some_of(known: tuple[str, ...]) -> Callable[[Any], tuple[str, ...]]:
    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not set(value) <= set(known):
            choice = ", ".join(known)
            raise ValueError(f"is {value!r}, it must be a list of some of {choice}")
        return tuple(value)

    return read


def _alphas(value: Any) -> tuple[float, ...]:
    good = isinstance(value, list) and value and all(map(is_number, value))
    if not good or not all(0 <= alpha <= 1 for alpha in value):
        raise ValueError(f"is {value!r}, it must be a list of numbers in [0, 1]")
    return tuple(map(float, value))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"is {value!r}, it must be a name")
    return value


def _images(value: Any) -> int | None:
    if value is not None and not _is_count(value, 1):
        raise ValueError(f"is {value!r}, it must be a number of images")
    return value


_READERS: dict[str, Reader] = {
    "dataset": _text,
    "title": _text,
    "network": _network,
    "training": _training,
    "tasks": _tasks,
    "train_split": _text,
    "test_split": _text,
    "methods": _some_of(METHODS),
    "alphas": _alphas,
    "references": _some_of(REFERENCES),
    "finishes": _some_of(FINISHES),
    "calibration": _images,
    "search": _images,
}
