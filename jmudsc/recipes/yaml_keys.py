"""YAML keys: read the keys of a file, and say all that is wrong with them at once."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from jmudsc.merging.option_values import quoted, Reader
from jmudsc.paths import did_you_mean, listed


def read_yaml(path: Path, expected: str) -> Any:
    """Read plain values from a file.

    Args:
        path: a YAML file.
        expected: what is expected there, named in an error.

    Returns:
        What the file says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected {expected}, got no such file. Check the path."
        )
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(
            f"{path}: expected YAML, got a text that is none. Correct this:\n{error}"
        ) from error


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
            hint = did_you_mean(str(key), readers) or "."
            problems.append(f"{key}: there is no such key{hint}")
            continue
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    missing = [key for key in required if key not in content]
    problems += [f"{key}: this key is missing." for key in missing]
    return values, problems


def refuse(where: str, problems: list[str]) -> None:
    """Raise a ValueError with all problems, if there are any."""
    if problems:
        raise ValueError(
            f"{where}: correct {plural(len(problems), 'mistake')}:\n"
            f"{listed(problems, 30)}"
        )


def path_text(value: Any) -> str:
    """Read a path.

    Args:
        value: anything.

    Returns:
        The path, as it is.

    Raises:
        ValueError: if it is no text, or empty.
    """
    if not isinstance(value, str) or not value:
        raise ValueError(f"expected a path, got {quoted(value)}. Put it in quotes.")
    return value


def plural(count: int, noun: str) -> str:
    """Write how many of something there are.

    Example:
        >>> plural(1, "label"), plural(2, "label"), plural(3, "batch")
        ('1 label', '2 labels', '3 batches')
    """
    ending = "es" if noun.endswith(("ch", "x")) else "s"
    return f"{count} {noun}{'' if count == 1 else ending}"
