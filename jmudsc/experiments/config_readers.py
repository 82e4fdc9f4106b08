"""Config readers: of what experiments of all kinds have in their YAML files."""

import dataclasses
from collections.abc import Mapping
from types import UnionType
from typing import Any

import flax.linen as nn

from jmudsc.experiments.training import TrainConfig
from jmudsc.matching.methods import METHODS
from jmudsc.merging.option_values import is_number, one_of, quoted, Reader
from jmudsc.paths import did_you_mean

REPAIRS = ("none", "repair", "refit")


def network_from(known: Mapping[str, type[nn.Module]]) -> Reader:
    """Return a reader of a network: its name, and the fields of its module."""

    def read(value: Any) -> nn.Module:
        name = str(value.get("name")) if isinstance(value, dict) else "none"
        if name not in known:
            one_of(tuple(known))(name)
        return _built(known[name], {k: v for k, v in value.items() if k != "name"})

    return read


def training(value: Any) -> TrainConfig:
    """Read how networks are trained."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping of keys to values, got {quoted(value)}.")
    return _built(TrainConfig, value)


def _built(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Build a dataclass from plain values, or say all that does not fit."""
    fields = {f.name: f for f in dataclasses.fields(kind)}
    fields = {n: f for n, f in fields.items() if n not in ("parent", "name")}
    problems, fitting = [], {n: _frozen(v) for n, v in values.items()}
    for name, value in fitting.items():
        if name not in fields:
            hint = did_you_mean(str(name), fields) or "."
            problems.append(f"{name}: there is no such key{hint}")
        elif not _fits(value, fields[name].type):
            wanted = getattr(fields[name].type, "__name__", fields[name].type)
            problems.append(f"{name}: expected {wanted}, got {quoted(values[name])}.")
    problems += [
        f"{name}: this key is missing."
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and name not in values
    ]
    if problems:
        raise ValueError(" ".join(problems))
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


def is_count(value: Any, least: int) -> bool:
    """Whether a plain value is a whole number, `least` or more."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return whole and value >= least


def count_of(what: str) -> Reader:
    """Return a reader of how many there are of something, 1 or more."""

    def read(value: Any) -> int:
        if not is_count(value, 1):
            raise ValueError(f"expected a number of {what}, got {quoted(value)}.")
        return value

    return read


def some_of(known: tuple[str, ...]) -> Reader:
    """Return a reader of some of the known names."""

    def read(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not set(value) <= set(known):
            choice = ", ".join(known)
            raise ValueError(
                f"expected a list of some of {choice}, got {quoted(value)}."
            )
        return tuple(value)

    return read


def alphas(value: Any) -> tuple[float, ...]:
    """Read values of the balance."""
    good = isinstance(value, list) and value and all(map(is_number, value))
    if not good or not all(0 <= alpha <= 1 for alpha in value):
        raise ValueError(f"expected a list of numbers in [0, 1], got {quoted(value)}.")
    return tuple(map(float, value))


def text(value: Any) -> str:
    """Read a name."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a name, got {quoted(value)}.")
    return value


def images(value: Any) -> int | None:
    """Read a number of images, or None for all."""
    return None if value is None else count_of("images")(value)


# Of the keys that every experiment has.
COMMON: Mapping[str, Reader] = {
    "dataset": text,
    "training": training,
    "train_split": text,
    "test_split": text,
    "methods": some_of(METHODS),
    "alphas": alphas,
    "repairs": some_of(REPAIRS),
    "calibration": images,
    "search": images,
}
