"""Keras files: `.keras`, `.weights.h5` and the older `.h5`, without Keras."""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jmudsc.conversion.source import Source

_WEIGHTS = "model.weights.h5"
_OLD = "model_weights"
# What is no layer: the groups between layers, and what an optimizer keeps.
_BETWEEN = ("layers", "vars")
_OTHERS = ("optimizer", "optimizer_weights", "seed_generator")


def read_keras(path: Path) -> Source:
    """Read the variables of a file that Keras wrote, but for those of its optimizer.

    Keras 3 numbers the variables of a layer: `dense/0` and `dense/1`. A layer is called
    as the file calls it, counted from the start of the model, or as its user did.

    Args:
        path: a `.keras` archive, or an HDF5 file of weights or of a whole model.

    Raises:
        ModuleNotFoundError: if h5py is not installed.
        ValueError: if it is no such file.
    """
    import h5py

    try:
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else _Plain() as archive:
            file = path if archive is None else io.BytesIO(archive.read(_WEIGHTS))
            with h5py.File(file, "r") as opened:
                return _old(opened[_OLD]) if _OLD in opened else _new(opened)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: expected a file of Keras with the variables of a model, got "
            f"something else ({error}). Save it with model.save or model.save_weights."
        ) from error


class _Plain:
    """What stands for an archive where there is none."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


def _new(file: Any) -> Source:
    """Read a file of Keras 3."""
    arrays: dict[str, np.ndarray] = {}
    own: dict[str, str] = {}

    def visit(name: str, found: Any) -> None:
        words = name.split("/")
        if hasattr(found, "shape") and not any(word in _OTHERS for word in words):
            arrays[name] = np.asarray(found)
            own[name] = _by_users_name(file, words)

    file.visititems(visit)
    counted = {name: _without(name.split("/")) for name in arrays}
    return Source(arrays, (own, _recounted(own), counted))


def _by_users_name(file: Any, words: list[str]) -> str:
    """Return the name of a variable by those that its layers have for the user."""
    called = []
    for depth, word in enumerate(words, start=1):
        own = "/".join((*words[:depth], "vars"))
        is_layer = word not in _BETWEEN and own in file
        called.append(str(file[own].attrs.get("name", word)) if is_layer else word)
    return _without(called)


def _without(words: list[str]) -> str:
    return "/".join(word for word in words if word not in _BETWEEN)


def _old(layers: Any) -> Source:
    """Read a file of Keras 2, or of Keras 3 in its form."""
    arrays: dict[str, np.ndarray] = {}
    for layer in layers:
        for given in layers[layer].attrs.get("weight_names", ()):
            name = given.decode() if isinstance(given, bytes) else str(given)
            words = name.partition(":")[0].split("/")
            own = words[words.index(layer) :] if layer in words else [layer, words[-1]]
            arrays["/".join(own)] = np.asarray(layers[layer][name])
    own = {name: name for name in arrays}
    return Source(arrays, (own, _recounted(own)))


def _recounted(names: Mapping[str, str]) -> dict[str, str]:
    """Count layers from the start of a model, whatever was built before it.

    Keras numbers layers that have no name of their own in the order they are made.
    """
    layers = {word for own in names.values() for word in own.split("/")[:-1]}
    bases: dict[str, list[str]] = {}
    for layer in sorted(layers, key=_number):
        bases.setdefault(re.sub(r"_\d+$", "", layer), []).append(layer)
    anew = {
        layer: f"{base}_{place}" if place else base
        for base, several in bases.items()
        for place, layer in enumerate(several)
    }
    split = {name: own.split("/") for name, own in names.items()}
    return {
        name: "/".join([*(anew[word] for word in words[:-1]), words[-1]])
        for name, words in split.items()
    }


def _number(layer: str) -> int:
    found = re.search(r"_(\d+)$", layer)
    return int(found[1]) if found else 0


def is_numbered(name: str) -> bool:
    """Whether a variable has a number in the place of a name.

    Example:
        >>> is_numbered("dense/0"), is_numbered("dense/kernel")
        (True, False)
    """
    return name.rpartition("/")[2].isdecimal()


def groups_of(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the numbered variables of every layer, in order.

    Args:
        names: name in the file -> name to go by.
    """
    found: dict[str, list[str]] = {}
    numbered = [name for name, own in names.items() if is_numbered(own)]
    for name in sorted(numbered, key=lambda x: int(names[x].rpartition("/")[2])):
        found.setdefault(names[name].rpartition("/")[0], []).append(name)
    return found
