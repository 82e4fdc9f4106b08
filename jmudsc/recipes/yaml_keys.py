"""YAML keys: read the keys of a file, and say all that is wrong with them at once."""

from collections.abc import Iterable, Mapping
from typing import Any

from jmudsc.checkpoints.urls import AnyPath
from jmudsc.merging.option_values import quoted, Reader
from jmudsc.paths import cut, did_you_mean, listed, plural
from jmudsc.recipes.yaml_text import plain_values

# As long as any file system takes them.
_LONGEST_PATH = 4096


def read_yaml(path: AnyPath, expected: str) -> Any:
    """Read plain values from a file.

    Args:
        path: a YAML file.
        expected: what is expected there, named in an error.

    Returns:
        What the file says.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no YAML, or none that can be meant.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected {expected}, got no such file. Check the path."
        )
    return plain_values(str(path), path.read_bytes())


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
            problems.append(f"{cut(str(key))}: there is no such key{hint}")
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
    if len(value) > _LONGEST_PATH or "\0" in value:
        raise ValueError(
            f"expected a path of at most {_LONGEST_PATH} characters, none of them "
            f"zero, got {quoted(value)}. Correct it."
        )
    return value
