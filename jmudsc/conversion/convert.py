"""Convert: the arrays of another library's file as the tree of a network."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.load import open_variables
from jmudsc.checkpoints.renaming import Rename, renamed
from jmudsc.conversion.keras_files import read_keras
from jmudsc.conversion.layouts import fitting, is_split, laid_out
from jmudsc.conversion.onnx_files import read_onnx
from jmudsc.conversion.pairing import paired, Pairing
from jmudsc.conversion.roles import is_table, is_torchs
from jmudsc.conversion.source import Layout, Source
from jmudsc.lazy import read_all
from jmudsc.paths import flatten, listed, unflatten

_MOST_LINES = 30


@dataclass(frozen=True)
class Reader:
    """What reads files with some endings.

    Attributes:
        endings: of the files.
        read: path -> their arrays.
        package: that it needs, and the extra of jmudsc that has it.
    """

    endings: tuple[str, ...]
    read: Callable[[Path], Source]
    package: tuple[str, str]


READERS = (
    Reader((".keras", ".h5", ".hdf5"), read_keras, ("h5py", "keras")),
    Reader((".onnx",), read_onnx, ("onnx", "onnx")),
)


def converted(
    path: str,
    like: PyTree,
    rename: Rename | None = None,
    layout: Layout | None = None,
) -> PyTree:
    """Read a file of another library as the variables of a network.

    Arrays and leaves are paired by name: the words of the path, where `weight` of torch
    is `kernel` of Flax, `gamma` is `scale`, `running_mean` is `mean`, and so on. The
    axes of weights are brought into the order of the network where shapes tell it; the
    weights that fit in two ways lie as the others of the file do. An axis may be split
    into heads.

    Args:
        path: a `.keras`, `.h5` or `.onnx` file, or any checkpoint that `load` reads.
        like: the variables of the network: arrays, or their shapes.
        rename: pattern of names in the file -> the path of the network, as for `load`;
            None leaves arrays out.
        layout: how all weights lie in the file; None to find out.

    Returns:
        The arrays, with their own types, in the tree of `like`.

    Raises:
        FileNotFoundError: if there is no such file.
        ModuleNotFoundError: if the package that reads it is not installed.
        ValueError: if it is no such file, or listing every leaf and array that has no
            partner or does not fit.
    """
    source = _read(path)
    leaves = {name: tuple(np.shape(leaf)) for name, leaf in flatten(like).items()}
    pairing = _best(path, source, leaves, rename or {})
    problems = list(pairing.problems)
    found = _laid_out(source, pairing, leaves, layout, problems)
    if problems:
        raise ValueError(
            f"{path}: expected an array for every leaf of the network and no others, "
            f"got {_counted(len(problems))} not fit. Rename what has another name "
            '(--rename "OLD=NEW", with nothing after = to leave arrays out):\n'
            f"{listed(problems, _MOST_LINES)}"
        )
    return unflatten(like, found)


def _counted(problems: int) -> str:
    return "1 that does" if problems == 1 else f"{problems} that do"


def reader_of(path: str | os.PathLike[str]) -> Reader | None:
    """Return what reads a file of another library, None for a checkpoint."""
    name = os.fspath(path).lower()
    return next((row for row in READERS if name.endswith(row.endings)), None)


def _read(path: str) -> Source:
    reader = reader_of(path)
    if reader is None:
        arrays = flatten(read_all(open_variables(path, separator="").variables))
        return Source({name: np.asarray(x) for name, x in arrays.items()})
    package, extra = reader.package
    if importlib.util.find_spec(package) is None:
        raise ModuleNotFoundError(
            f"{path}: expected the package {package}, got none. Run: pip install "
            f"'jmudsc[{extra}]'"
        )
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"{path}: expected a file, got no such file. Check the path."
        )
    return reader.read(file)


def _best(
    path: str, source: Source, leaves: Mapping[str, tuple[int, ...]], rename: Rename
) -> Pairing:
    """Pair by the naming that leaves the fewest problems."""
    shapes = {name: x.shape for name, x in source.arrays.items()}
    namings = source.namings or ({name: name for name in source.arrays},)
    found = [
        paired(_renamed(path, naming, rename), shapes, leaves) for naming in namings
    ]
    return min(found, key=lambda each: len(each.problems))


def _renamed(path: str, naming: Mapping[str, str], rename: Rename) -> dict[str, str]:
    if not rename:
        return dict(naming)
    named: Any = {own: _Name(name) for name, own in naming.items()}
    found = flatten(renamed(path, named, rename))
    return {each.name: own for own, each in found.items()}


@dataclass(frozen=True)
class _Name:
    """The name of an array in a file, as a leaf of a tree."""

    name: str


def _laid_out(
    source: Source,
    pairing: Pairing,
    leaves: Mapping[str, tuple[int, ...]],
    layout: Layout | None,
    problems: list[str],
) -> dict[str, np.ndarray]:
    """Bring all arrays into the shapes of a network; note those that do not fit."""
    ways = {
        path: _ways(source, name, path, leaves[path], layout)
        for path, name in pairing.sources.items()
    }
    told: set[Layout] = set()
    for path, name in pairing.sources.items():
        if len(ways[path]) == 1 and source.arrays[name].ndim > 1 and not is_table(path):
            told |= set(ways[path])
    found = {}
    for path, name in pairing.sources.items():
        array, wanted = source.arrays[name], leaves[path]
        sure = len(ways[path]) == 1
        usual: list[Layout] = [w for w in ways[path] if sure or (told and {w} >= told)]
        if usual:
            found[path] = laid_out(array, usual[0], wanted)
        else:
            problems.append(_misfit(path, wanted, name, array, bool(ways[path])))
    return found


def _ways(
    source: Source,
    name: str,
    path: str,
    wanted: tuple[int, ...],
    layout: Layout | None,
) -> list[Layout]:
    """Return the layouts by which an array may be a leaf."""
    array = source.arrays[name]
    if _is_flipped(name, path, array):
        return []
    if array.ndim < 2 or is_table(path):
        return ["jax"] if is_split(array.shape, wanted) else []
    ways = fitting(array.shape, wanted)
    by_name = None if source.layouts or is_torchs(name) else "jax"
    by_name = "jax" if is_torchs(name) and is_torchs(path) else by_name
    given = layout or source.layouts.get(name) or by_name
    return [way for way in ways if given in (None, way)]


def _is_flipped(name: str, path: str, array: np.ndarray) -> bool:
    """Whether it is the weight of a transposed convolution as torch has it."""
    is_transposed = "transpose" in path.lower() or "transpose" in name.lower()
    return is_transposed and is_torchs(name) and array.ndim > 2


def _misfit(
    path: str, wanted: tuple[int, ...], name: str, array: np.ndarray, fits: bool
) -> str:
    """Say why an array is not the leaf that its name says it is."""
    if _is_flipped(name, path, array):
        return f"{path}: {name} is of a transposed convolution, whose window is flipped"
    if fits:
        return (
            f"{path}: {name} fits as torch and as JAX have weights, both "
            f"{list(array.shape)}: say which by --layout"
        )
    return f"{path}: {list(wanted)}, {name} is {list(array.shape)}"
