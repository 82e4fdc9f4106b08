"""Keys: read the keys of a YAML file, and say all that is wrong with them at once."""

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jmudsc.paths import did_you_mean, listed

# Turns a plain value into what it means, or says in a ValueError what it must be.
Reader = Callable[[Any], Any]


def read_yaml(path: Path, needed: str) -> Any:
    """Read plain values from a file.

    Args:
        path: a YAML file.
        needed: what is needed there, to end the error if there is nothing.

    Returns:
        What the file says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, {needed}")
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: is not YAML, it must be: {error}") from error


def read_keys(
    content: Mapping[Any, Any], readers: Mapping[str, Reader], required: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """Read every key by its own reader.

    Args:
        content: the keys and their plain values.
        readers: of each key there may be.
        required: the keys there must be.

    Returns:
        The values that could be read, and what is wrong with the other keys.
    """
    problems, values = [], {}
    for key, value in content.items():
        if key not in readers:
            problems.append(f'"{key}" is no key{did_you_mean(str(key), readers)}')
            continue
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            problems.append(f'"{key}" {error}')
    problems += [f'"{key}" is missing' for key in required if key not in content]
    return values, problems


def refuse(where: str, problems: list[str]) -> None:
    """Raise a ValueError with all problems, if there are any."""
    if problems:
        raise ValueError(
            f"{where}: {len(problems)} things must be corrected:\n"
            f"{listed(problems, 30)}"
        )


def is_number(value: Any) -> bool:
    """Whether a plain value is a finite real number."""
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)
