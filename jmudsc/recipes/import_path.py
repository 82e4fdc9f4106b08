"""Import path: a Python object that a recipe names, `module:name`."""

import importlib
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jmudsc.adapters.libraries import LIBRARIES
from jmudsc.checkpoints.urls import AnyPath, is_url
from jmudsc.merging.option_values import quoted
from jmudsc.paths import cut, did_you_mean


@dataclass(frozen=True)
class ImportPath:
    """The import path of a Python object.

    Attributes:
        name: `module:name`, the name possibly dotted.
        args: None for the object itself, keyword arguments for what it returns.
        adapter: the library of the model that it returns, by whose adapter it becomes
            functions; None for an object that is taken as it is.
    """

    name: str
    args: Mapping[str, Any] | None = None
    adapter: str | None = None


def read_import_path(value: Any) -> ImportPath:
    """Read an import path from a plain value.

    Args:
        value: `module:name`, or a mapping with that as its `factory` and the keyword
            arguments to call it with.

    Returns:
        The import path.

    Raises:
        ValueError: if it is neither; a sentence to go after the key of the recipe.
    """
    name, args, adapter = value, None, None
    if isinstance(value, dict):
        args = {k: arg for k, arg in value.items() if k not in ("factory", "adapter")}
        name, adapter = value.get("factory"), value.get("adapter")
        _check_adapter(adapter)
        if wrong := [key for key in args if not isinstance(key, str)]:
            raise ValueError(
                f"expected names of arguments beside factory, got {quoted(wrong[0])}. "
                "Put it in quotes."
            )
    if not isinstance(name, str) or not all(name.partition(":")):
        raise ValueError(
            'expected "module:name" or {factory: "module:name", ...}, got '
            f"{quoted(value)}. Write the module, a colon and the name in it."
        )
    return ImportPath(name, args, adapter)


def read_model(value: Any) -> ImportPath:
    """Read the import path of a model, with the adapter of its library.

    Args:
        value: `{adapter: nnx, factory: module:name, ...}`.

    Raises:
        ValueError: if it is no such thing; a sentence to go after the key.
    """
    path = read_import_path(value)
    if path.adapter is None:
        raise ValueError(
            f"expected an adapter beside the factory, got {quoted(value)}. Add one of "
            f"{', '.join(LIBRARIES)}."
        )
    return path


def _check_adapter(adapter: Any) -> None:
    if adapter is not None and adapter not in LIBRARIES:
        raise ValueError(
            f"adapter: expected one of {', '.join(LIBRARIES)}, got {quoted(adapter)}"
            f"{did_you_mean(str(adapter), LIBRARIES) or '.'}"
        )


def plain_import_path(path: ImportPath) -> Any:
    """Write an import path as a plain value that `read_import_path` reads back."""
    if path.args is None:
        return path.name
    adapter = {} if path.adapter is None else {"adapter": path.adapter}
    return {**adapter, "factory": path.name, **path.args}


def resolve(path: ImportPath, folder: AnyPath) -> Any:
    """Import what an import path names, and call it if it has arguments.

    Modules are looked for in `folder` too, beside a recipe's own code; in the current
    directory if the recipe is at a URL, since no code is fetched.

    Args:
        path: from a recipe.
        folder: the folder of the recipe.

    Returns:
        The object, or what it returns.

    Raises:
        ValueError: if the module or the name in it is not there, or the arguments do
            not fit; a sentence to go after the key of the recipe.
    """
    module_name, _, name = path.name.partition(":")
    named = _module(module_name, folder)
    for part in name.split("."):
        if not hasattr(named, part):
            hint = did_you_mean(part, dir(named)) or "."
            raise ValueError(
                f'expected "{cut(part)}" in {cut(module_name)}, as "{cut(path.name)}" '
                f"says, got a module without it{hint} Correct the name."
            )
        named = getattr(named, part)
    return named if path.args is None else _called(path, named)


def called_if_function(path: ImportPath, named: Any) -> Any:
    """Call what is named if it is a function, as one that makes batches is meant to be.

    Args:
        path: from a recipe.
        named: what it names, from `resolve`.

    Returns:
        What the function returns; anything else as it is.

    Raises:
        ValueError: if the function needs arguments; a sentence to go after the key of
            the recipe.
    """
    if not inspect.isroutine(named):
        return named
    return _called(path, named)


def adapted(path: ImportPath, made: Any, part: str) -> Any:
    """Turn a model into one of the functions that a merge takes of it.

    Args:
        path: from a recipe, with an adapter.
        made: what its factory returned: a model, or a tuple of what the adapter's
            `functions` takes (a linen module and its variables, say).
        part: `"apply_fn"` or `"update_fn"`.

    Returns:
        The function; None for an `update_fn` of a model without running statistics.

    Raises:
        ValueError: if it is for another key, or the library is not installed; a
            sentence to go after the key of the recipe.
    """
    if part not in ("apply_fn", "update_fn"):
        raise ValueError(
            "expected an import path without an adapter, got "
            f"{path.adapter}. An adapter gives apply_fn and update_fn alone."
        )
    try:
        adapter = importlib.import_module(f"jmudsc.adapters.{path.adapter}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f'expected what the adapter "{path.adapter}" takes, got no module '
            f'"{error.name}". Install it with pip.'
        ) from error
    parts = made if isinstance(made, tuple) else (made,)
    return getattr(adapter.functions(*parts), part)


def _module(name: str, folder: AnyPath) -> Any:
    """Import a module that is installed or in a folder."""
    if is_url(folder):
        folder = Path.cwd()
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in (name, name.split(".")[0]):
            raise
        raise ValueError(
            f'expected a module "{cut(name)}", got none, neither installed nor in '
            f"{folder}. Install it or correct the name."
        ) from error


def _called(path: ImportPath, named: Any) -> Any:
    """Return what an object returns when called with the arguments of its path."""
    args = path.args or {}
    try:
        inspect.signature(named).bind(**args)
    except TypeError as error:
        given = ", ".join(args) or "no arguments"
        what = "Correct the keys beside factory."
        if path.args is None:
            what = f"Write {{factory: {path.name}, ...}} with these as keys."
        raise ValueError(
            f'expected arguments that "{path.name}" takes, got {given}: {error}. {what}'
        ) from error
    return named(**args)
