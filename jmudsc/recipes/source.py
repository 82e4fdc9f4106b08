"""Source: one of the models that a recipe merges, and where it comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jmudsc.checkpoints.renaming import check_rename
from jmudsc.merging.option_values import quoted
from jmudsc.recipes.import_path import (
    ImportPath,
    plain_import_path,
    read_import_path,
)
from jmudsc.recipes.yaml_keys import path_text, read_keys, Reader


@dataclass(frozen=True)
class Source:
    """One model of a recipe.

    Attributes:
        path: its checkpoint.
        subtree: the part of the checkpoint that is the variables; None for all of it.
        batches: calibration batches of its own task, a re-iterable; None where the
            recipe has batches of all tasks.
        rename: patterns of its leaf paths and the new path of each, as for `load`.
        separator: what its names are split at, as for `load`.
    """

    path: str
    subtree: str | tuple[str, ...] | None = None
    batches: ImportPath | None = None
    rename: tuple[tuple[str, str | None], ...] = ()
    separator: str | None = None


def read_sources(value: Any, fewest: int = 2) -> tuple[Source, ...]:
    """Read the models of a recipe from plain values.

    Args:
        value: a list of paths, and of mappings with the keys of `Source`.
        fewest: how many there must be.

    Returns:
        One source for each model.

    Raises:
        ValueError: saying all that is wrong; to go after the key of the recipe.
    """
    if not isinstance(value, list) or len(value) < fewest:
        several = "two models" if fewest == 2 else "one model"
        raise ValueError(
            f"expected a list of {several} or more, got {quoted(value)}. Write one "
            "checkpoint per line."
        )
    problems, sources = [], []
    for number, entry in enumerate(value):
        source, wrong = _source(entry, SOURCE_KEYS)
        problems += [f"entry {number}: {problem}" for problem in wrong]
        sources.append(source)
    if problems:
        raise ValueError(" ".join(problems))
    return tuple(sources)


def read_base(value: Any) -> Source:
    """Read the base of a recipe from a plain value.

    Args:
        value: a path, or a mapping with the keys of `Source` but `batches`.

    Returns:
        The source.

    Raises:
        ValueError: saying all that is wrong; to go after the key of the recipe.
    """
    source, problems = _source(value, BASE_KEYS)
    if problems:
        raise ValueError(" ".join(problems))
    return source


def _source(entry: Any, keys: Mapping[str, Reader]) -> tuple[Source, list[str]]:
    """Read a source, with no path if there is none; and what is wrong with it."""
    entry = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict):
        return Source(""), [
            f"expected a path, or a mapping with the key path, got {quoted(entry)}."
        ]
    values, problems = read_keys(entry, keys, required=["path"])
    return Source(**{"path": "", **values}), problems


def plain_source(source: Source) -> dict[str, Any]:
    """Write a source as plain values that `read_sources` reads back."""
    content: dict[str, Any] = {"path": source.path}
    subtree = source.subtree
    if subtree is not None:
        content["subtree"] = list(subtree) if isinstance(subtree, tuple) else subtree
    if source.batches is not None:
        content["batches"] = plain_import_path(source.batches)
    if source.rename:
        content["rename"] = dict(source.rename)
    if source.separator is not None:
        content["separator"] = source.separator
    return content


def _subtree(value: Any) -> str | tuple[str, ...] | None:
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return tuple(value)
    if not isinstance(value, str | None):
        raise ValueError(
            f"expected a name or a list of names, got {quoted(value)}. Name what of "
            "the checkpoint is the variables."
        )
    return value


def _rename(value: Any) -> tuple[tuple[str, str | None], ...]:
    if not isinstance(value, dict) or not all(
        old and isinstance(old, str) and (new is None or isinstance(new, str))
        for old, new in value.items()
    ):
        raise ValueError(
            f"expected a mapping of patterns to new paths, got {quoted(value)}. Write "
            "null in the place of a new path to leave leaves out."
        )
    if problems := check_rename(value):
        raise ValueError(f"expected as many * on both sides: {', '.join(problems)}.")
    return tuple(value.items())


def _separator(value: Any) -> str | None:
    if not isinstance(value, str | None):
        raise ValueError(
            f"expected a text to split names at, got {quoted(value)}. "
            'Write "" for none.'
        )
    return value


# Of each key of a model, what reads it.
SOURCE_KEYS: Mapping[str, Reader] = {
    "path": path_text,
    "subtree": _subtree,
    "batches": read_import_path,
    "rename": _rename,
    "separator": _separator,
}
# The base is of no task.
BASE_KEYS: Mapping[str, Reader] = {
    key: read for key, read in SOURCE_KEYS.items() if key != "batches"
}
