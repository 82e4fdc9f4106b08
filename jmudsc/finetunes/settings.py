"""Settings: the value that an option has for one leaf, at one depth, for one model.

A setting is a value; or a mapping of patterns of leaf paths to settings, of which the
first that matches counts; or a list. For an option that every model may have its own of
the first list has one setting a model. Any other list runs over the depth of the
network: numbers are interpolated between its entries, of words the entry before counts.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from jmudsc import paths
from jmudsc.finetunes.option import Number, Option

# What a pattern begins with that is a regular expression, to be found in a path.
REGEX = "re:"


@dataclass(frozen=True)
class Spot:
    """Where in a network a value is asked for.

    Attributes:
        path: the leaf.
        depth: how deep it lies, from 0 for the first layer, and for all that is in no
            layer, to 1 for the last.
    """

    path: str
    depth: float = 0.0


def is_like(path: str, pattern: str) -> bool:
    """Whether a path matches a shell pattern, or holds what follows `re:`.

    Example:
        >>> is_like("params/layers_3/kernel", "re:layers_[0-4]/")
        True
    """
    if pattern.startswith(REGEX):
        return re.search(pattern.removeprefix(REGEX), path) is not None
    return paths.matches(path, [pattern])


def matched(path: str, patterns: Iterable[str]) -> str | None:
    """Return the first of some patterns that a path matches; None if none does."""
    return next((pattern for pattern in patterns if is_like(path, pattern)), None)


def value_at(option: Option, setting: Any, spot: Spot, models: int) -> Any:
    """Return the value of an option at a spot.

    Args:
        option: the option.
        setting: what was given for it.
        spot: where.
        models: the number of models.

    Returns:
        The value; for an option of every model a tuple of one for each.
    """
    if not option.per_model:
        return _value(option, setting, spot)
    return tuple(
        _value(option, _of_model(option, setting, spot, model), spot)
        for model in range(models)
    )


def interpolate(values: Sequence[float | int], depth: float) -> float:
    """Return the value at a depth of a list that runs over a network.

    Args:
        values: at evenly spaced depths, the first at 0, the last at 1.
        depth: in [0, 1].

    Example:
        >>> interpolate([0.0, 1.0, 0.5], 0.75)
        0.75
    """
    place = depth * (len(values) - 1)
    low = min(math.floor(place), len(values) - 1)
    high = min(low + 1, len(values) - 1)
    share = place - low
    return float((1 - share) * values[low] + share * values[high])


def problems_of(
    option: Option, setting: Any, models: int, leaves: Iterable[str] | None
) -> list[str]:
    """Return what is wrong with a setting: nothing, or lines that say it.

    Args:
        option: the option.
        setting: what was given for it.
        models: the number of models.
        leaves: the paths of all leaves; None if they are not known.
    """
    known = None if leaves is None else list(leaves)
    return _problems(option, setting, option.name, models, known)


def is_plain(setting: Any) -> bool:
    """Whether a setting is the same for all leaves."""
    if isinstance(setting, Sequence) and not isinstance(setting, str):
        return all(map(is_plain, setting))
    return not isinstance(setting, Mapping)


def _value(option: Option, setting: Any, spot: Spot) -> Any:
    setting = _of_leaf(option, setting, spot)
    if isinstance(setting, (list, tuple)):
        if all(isinstance(x, Real) for x in setting):
            return interpolate(setting, spot.depth)
        return setting[math.floor(spot.depth * (len(setting) - 1))]
    return setting


def _of_leaf(option: Option, setting: Any, spot: Spot) -> Any:
    while isinstance(setting, Mapping):
        pattern = matched(spot.path, setting)
        setting = option.default if pattern is None else setting[pattern]
    return setting


def _of_model(option: Option, setting: Any, spot: Spot, model: int) -> Any:
    setting = _of_leaf(option, setting, spot)
    return setting[model] if isinstance(setting, (list, tuple)) else setting


def _problems(
    option: Option, setting: Any, name: str, models: int, leaves: list[str] | None
) -> list[str]:
    if isinstance(setting, Mapping):
        if not option.per_leaf:
            return [f"{name}: expected one value for all leaves, got patterns"]
        found = []
        for pattern, inner in setting.items():
            if not isinstance(pattern, str):
                found.append(f"{name}: expected patterns of leaves, got {pattern!r}")
                continue
            if leaves and not any(is_like(path, pattern) for path in leaves):
                hint = paths.did_you_mean(pattern, leaves)
                found.append(f'{name}: pattern "{pattern}" matches no leaf{hint}')
            found += _problems(option, inner, f'{name}["{pattern}"]', models, leaves)
        return found
    if isinstance(setting, (list, tuple)):
        return _list_problems(option, list(setting), name, models, leaves)
    if not option.kind.holds(setting):
        return [f"{name}: expected {option.kind}, got {setting!r}"]
    return []


def _list_problems(
    option: Option,
    setting: list[Any],
    name: str,
    models: int,
    leaves: list[str] | None,
) -> list[str]:
    if option.per_model:
        if len(setting) != models:
            return [
                f"{name}: expected one value, or a list of one for each of {models} "
                f"models, got a list of {len(setting)}"
            ]
        one = Option(option.name, option.default, option.kind, option.about)
        return [
            problem
            for number, inner in enumerate(setting)
            for problem in _problems(one, inner, f"{name}[{number}]", models, leaves)
        ]
    if not option.per_leaf:
        return [f"{name}: expected {option.kind} for all leaves, got a list"]
    if not setting or not isinstance(option.kind, Number):
        kind = f"{option.kind}" if setting else "at least one value"
        return [f"{name}: expected {kind}, got the list {setting!r}"]
    return [
        f"{name}: expected {option.kind}, got {value!r} at position {number}"
        for number, value in enumerate(setting)
        if not option.kind.holds(value)
    ]
