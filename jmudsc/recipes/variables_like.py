"""Variables like: those of the network that an import path names."""

import importlib
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.adapters.libraries import LIBRARIES
from jmudsc.paths import did_you_mean
from jmudsc.recipes.import_path import read_import_path, resolve


def variables_like(name: str, adapter: str | None, folder: Path) -> PyTree:
    """Return the variables of a network, by which others are understood.

    Args:
        name: `module:name` of the variables, or of a function that returns them or a
            model.
        adapter: the library of that model; None for variables.
        folder: where modules are looked for too.

    Raises:
        ValueError: if there is no such module, name or adapter, or without an adapter
            something is no array.
    """
    if adapter is not None and adapter not in LIBRARIES:
        raise ValueError(
            f"--adapter: expected one of {', '.join(LIBRARIES)}, got "
            f'"{adapter}"{did_you_mean(adapter, LIBRARIES) or "."}'
        )
    try:
        named: Any = resolve(read_import_path(name), folder)
    except ValueError as error:
        raise ValueError(f"--like: {error}") from None
    made = named() if callable(named) and _is_function(named) else named
    if adapter is None:
        return _checked(made)
    parts = made if isinstance(made, tuple) else (made,)
    return (
        importlib.import_module(f"jmudsc.adapters.{adapter}")
        .functions(*parts)
        .variables
    )


def _checked(made: Any) -> PyTree:
    """Check that a tree is of arrays or their shapes, and holds no model."""
    odd = [x for x in jax.tree.leaves(made) if not hasattr(x, "shape")]
    odd = [x for x in odd if not isinstance(x, bool | int | float | complex)]
    if odd:
        raise ValueError(
            "--like: expected variables, arrays or their shapes, got an object of type "
            f"{type(odd[0]).__name__} among them. Pass --adapter linen (or nnx, "
            "equinox, haiku, keras, huggingface) if it is a model."
        )
    return made


def _is_function(named: Any) -> bool:
    """Whether an object makes a model, and is none itself (many can be called)."""
    return (
        isinstance(named, type) or hasattr(named, "__code__") or hasattr(named, "func")
    )
