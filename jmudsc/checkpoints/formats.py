"""Formats: the ways to store a tree of arrays, one row each.

A new format is a module that opens and writes it, and a row of `FORMATS` here. All are
read and written without pickle. `HUGGING_FACE` is none of them: a directory of such a
model is known by what is in it, and needs another one to be written.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints import hugging_face, msgpack, npz, orbax, safetensors
from jmudsc.checkpoints.filling import Table
from jmudsc.checkpoints.orbax_layout import find_item, is_item
from jmudsc.checkpoints.structure import Route
from jmudsc.checkpoints.urls import copied, is_url
from jmudsc.lazy import LazyArray
from jmudsc.paths import listed

# What other programs put at the end of files that nothing here writes.
_FOREIGN = (
    ".pt .pth .pkl .pickle .h5 .hdf5 .keras .bin .onnx .npy .ckpt .gguf .json".split()
)
_FIRST = 16  # bytes of a file by which its format is known
# Formats that are not read, by the first bytes of their files.
_KNOWN = {
    "HDF5, as h5py and Keras write it": rb"\x89HDF\r\n\x1a\n",
    # A message of protobuf: the version of ONNX, then texts or the graph.
    "ONNX": rb"\x08[\x01-\x20][\x12\x1a\x22\x32\x3a\x42]",
    "pickle, as PyTorch once wrote it": rb"\x80[\x02-\x05]",
    "GGUF": rb"GGUF",
    "npy, a single array": rb"\x93NUMPY",
}


def _any_name(names: Mapping[str, Route]) -> Mapping[str, str]:
    return {}


def _itself(file: Path) -> Sequence[Path]:
    return [file]


@dataclass(frozen=True)
class Format:
    """One way to store a tree of arrays.

    Attributes:
        name: what it is called.
        endings: of the paths that are written in it; none for that of directories.
        begins: whether a file with these first bytes, 16 at most, is of it.
        open: path -> its arrays, of which nothing but shapes and dtypes need be read.
        write: (path, arrays) -> None, each read when it is its turn.
        holds: whether it can tell a type from all others.
        layout: the tree that is opened and written: `"flat"`, a dict of arrays by their
            names joined to one; `"dicts"`, nested dicts with text as keys; `"tree"`,
            any that JAX has.
        joint: what joins names in a flat tree that is written.
        refused: path of every leaf -> its keys, to the path of each that it cannot
            hold -> why.
        empty_arrays: whether it can hold arrays without elements.
        by_leaf: whether arrays are read and written one by one, not all at once.
        table: arrays -> where each lies in a file that is written part by part; None
            for a format of which that is not known beforehand.
        index: the ending of files that say which of several files an array is in.
        globs: what is looked for in a directory that is none of orbax; the first
            pattern that matches anything decides.
        files: the files that hold the arrays of one that is opened.
        package: the package that reads and writes it, with the module to import; none
            if numpy does.
    """

    name: str
    endings: tuple[str, ...]
    begins: Callable[[bytes], bool]
    open: Callable[[Any], PyTree[LazyArray]]
    write: Callable[[Path, PyTree[LazyArray]], None]
    holds: Callable[[np.dtype], bool]
    layout: Literal["flat", "dicts", "tree"] = "flat"
    joint: str = "/"
    refused: Callable[[Mapping[str, Route]], Mapping[str, str]] = _any_name
    empty_arrays: bool = True
    by_leaf: bool = True
    table: Callable[[Mapping[str, LazyArray]], Table] | None = None
    index: str | None = None
    globs: tuple[str, ...] = ()
    files: Callable[[Path], Sequence[Path]] = _itself
    package: tuple[str, str] | None = None


# That of directories, which is what a path without an ending of another means.
ORBAX = Format(
    name="orbax",
    endings=(),
    begins=lambda start: False,
    open=orbax.open_tree,
    write=orbax.write_tree,
    holds=orbax.holds,
    layout="tree",
    refused=orbax.refused,
    empty_arrays=False,
    files=orbax.files_of,
    package=("orbax-checkpoint", "orbax.checkpoint"),
)
FORMATS = (
    ORBAX,
    Format(
        name="safetensors",
        endings=(".safetensors",),
        begins=safetensors.begins,
        open=safetensors.open_safetensors,
        write=safetensors.write_safetensors,
        holds=safetensors.holds,
        refused=safetensors.refused,
        table=safetensors.table_of,
        index=safetensors.INDEX,
        globs=(f"*{safetensors.INDEX}", "*.safetensors"),
        files=safetensors.files_of,
        package=("safetensors", "safetensors"),
    ),
    Format(
        name="npz",
        endings=(".npz",),
        begins=npz.begins,
        open=npz.open_npz,
        write=npz.write_npz,
        holds=npz.holds,
        refused=npz.refused,
    ),
    Format(
        name="msgpack",
        endings=(".msgpack",),
        begins=msgpack.begins,
        open=msgpack.open_msgpack,
        write=msgpack.write_msgpack,
        holds=lambda dtype: True,
        layout="dicts",
        refused=msgpack.refused,
        by_leaf=False,
        package=("msgpack", "msgpack"),
    ),
)

HUGGING_FACE = Format(
    name="Hugging Face",
    endings=(),
    begins=lambda start: False,
    open=hugging_face.open_directory,
    write=safetensors.write_safetensors,  # of one file: see `hugging_face_like`
    holds=safetensors.holds,
    joint=".",
    refused=safetensors.refused,
    files=hugging_face.files_of,
    package=("safetensors", "safetensors"),
)


def hugging_face_like(options: hugging_face.HuggingFace) -> Format:
    """Return the format of a directory of a Hugging Face model that is like another.

    Args:
        options: the other, and how to write.
    """
    write = partial(hugging_face.write_directory, options)
    return replace(HUGGING_FACE, write=write)


def endings() -> list[str]:
    """Return what the files that can be written end in."""
    return [ending for row in FORMATS for ending in row.endings]


def ending_of(path: str | os.PathLike[str]) -> str:
    """Return the ending of a path that names its format; nothing for orbax.

    Example:
        >>> ending_of("merged.safetensors"), ending_of("merged.of.two")
        ('.safetensors', '')
    """
    return next((x for x in endings() if os.fspath(path).endswith(x)), "")


def format_of(path: str | os.PathLike[str]) -> Format:
    """Return the format that the ending of a path names.

    Example:
        >>> format_of("merged.safetensors").name, format_of("merged").name
        ('safetensors', 'orbax')
    """
    ending = ending_of(path)
    return next((row for row in FORMATS if ending in row.endings), ORBAX)


def check_ending(path: str | os.PathLike[str]) -> None:
    """Check that a path does not end as files of another format do.

    Args:
        path: where a checkpoint is to be.

    Raises:
        ValueError: if it does, or the package that writes the format is not there.
    """
    ending = Path(path).suffix.lower()
    if not ending_of(path) and ending in _FOREIGN:
        raise ValueError(
            f"{os.fspath(path)}: expected an ending of what can be written "
            f"({', '.join(endings())}; none for an orbax checkpoint), got {ending}. "
            "Choose another name."
        )
    _check_installed(path, format_of(path))


def find(path: str | os.PathLike[str]) -> os.PathLike[str]:
    """Return what holds the arrays at a path.

    Args:
        path: a file, the index of several files, a directory with one of either, or
            a checkpoint of orbax; or the URL of one.

    Returns:
        The file, the directory of a Hugging Face model, or the item of orbax; of a URL,
        but for what orbax reads itself at `gs://`, a local copy.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is no checkpoint, or several.
    """
    text = os.fspath(path)
    if is_url(text):
        by_orbax = text.startswith("gs://") and not ending_of(text)
        return find_item(text) if by_orbax else copied(text, _found)
    return _found(text)


def files_at(path: str | os.PathLike[str]) -> tuple[Path, list[Path]]:
    """Return what holds the arrays at a path of this machine, and all of its files.

    Args:
        path: as for `find`, but no URL.

    Raises:
        FileNotFoundError: as `find`.
        ValueError: as `find`.
    """
    place = Path(find(path))
    return place, [Path(file) for file in format_at(place).files(place)]


def _found(path: str | os.PathLike[str]) -> Path:
    text = os.fspath(path)
    place = Path(os.path.abspath(os.path.expanduser(text)))
    if place.is_file() or _is_hugging_face(place):
        return place
    inside = _file_in(place) if place.is_dir() and not is_item(place) else None
    return inside or Path(find_item(text))


def format_at(place: str | os.PathLike[str]) -> Format:
    """Return the format of what is at a place, by what it says of itself.

    Args:
        place: from `find`.

    Raises:
        ValueError: if it is not of the format that its ending says, or of none that is
            known, or the package that reads it is not there.
    """
    here = Path(place)
    found = HUGGING_FACE if _is_hugging_face(here) else ORBAX
    found = _recognized(here) if here.is_file() else found
    _check_installed(place, found)
    return found


def _is_hugging_face(place: Path) -> bool:
    return hugging_face.is_model(place) and not is_item(place)


def _recognized(file: Path) -> Format:
    indexed = [row for row in FORMATS if row.index and file.name.endswith(row.index)]
    if indexed:
        return indexed[0]
    with file.open("rb") as opened:
        start = opened.read(_FIRST)
    found = next((row for row in FORMATS if row.begins(start)), None)
    known = None if found else _foreign(start)
    meant = format_of(file)
    if ending_of(file) and found is not meant:
        other = f"begins as that of {found.name}" if found else "begins as none does"
        other = f"begins as {known}" if known else other
        raise ValueError(
            f"{file}: expected a file of {meant.name} by its ending, got one that "
            f"{other}. Rename it or copy it again."
        )
    if found is None:
        raise ValueError(
            f"{file}: expected {', '.join(endings())} or the directory of an orbax "
            f"checkpoint, got a file of {known or 'another format'}. Convert "
            "it where it was made; nothing is ever unpickled."
        )
    return found


def _foreign(start: bytes) -> str | None:
    """Return what a file is that is not read, if that is known."""
    return next((x for x, begins in _KNOWN.items() if re.match(begins, start)), None)


def _file_in(directory: Path) -> Path | None:
    """Return the one file with arrays in a directory, None if there is none."""
    for row in FORMATS:
        matches = (sorted(directory.glob(pattern)) for pattern in row.globs)
        found = next(filter(None, matches), [])
        if len(found) > 1:
            raise ValueError(
                f"{directory}: expected one {row.name} file or an index of several, "
                f"got {len(found)} files without one. Give one of them:\n"
                f"{listed(x.name for x in found)}"
            )
        if found:
            return found[0]
    return None


def _check_installed(place: str | os.PathLike[str], row: Format) -> None:
    if row.package is None:
        return
    package, module = row.package
    try:
        is_there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around the module
        is_there = False
    if not is_there:
        raise ModuleNotFoundError(
            f"{os.fspath(place)}: expected the package {package} for {row.name}, got "
            f"none. Run: pip install {package}"
        )
