"""Formats: arrays in files that are not orbax's, told apart by endings and first bytes.

All are read and written without pickle. The names in safetensors and npz files are
flat; a msgpack file holds a tree.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints import msgpack, npz, safetensors
from jmudsc.checkpoints.subtrees import nested, Route
from jmudsc.lazy import LazyArray
from jmudsc.paths import listed

ENDINGS = {".safetensors": "safetensors", ".npz": "npz", ".msgpack": "msgpack"}
FLAT = ("safetensors", "npz")
# What other programs put at the end of files that nothing here writes.
_FOREIGN = (".pt", ".pth", ".pkl", ".pickle", ".h5", ".hdf5", ".bin", ".onnx", ".npy")


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Return the format that the ending of a path names; None for orbax.

    Example:
        >>> format_of("merged.safetensors"), format_of("merged")
        ('safetensors', None)
    """
    return ENDINGS.get(Path(path).suffix)


def check_ending(path: str | os.PathLike[str]) -> None:
    """Check that a path does not end as files of another format do.

    Args:
        path: where a checkpoint is to be.

    Raises:
        ValueError: if it does.
    """
    ending = Path(path).suffix.lower()
    if ending in _FOREIGN:
        raise ValueError(
            f"{os.fspath(path)}: ends in {ending}, a format that is not written, "
            f"needed {', '.join(ENDINGS)}, or none for an orbax checkpoint; choose "
            "another name."
        )


def find_file(path: str | os.PathLike[str]) -> Path | None:
    """Return the file that holds the arrays at a path, None where that is for orbax.

    Args:
        path: a file, the index of several safetensors files, or a directory with one of
            either.

    Raises:
        ValueError: if the path is a URL of a file, or a directory of several files.
    """
    text = os.fspath(path)
    if "://" in text:
        if format_of(text):
            raise ValueError(
                f"{text}: is a URL, needed a file of a local file system; copy it here."
            )
        return None
    place = Path(os.path.abspath(os.path.expanduser(text)))
    if place.is_file():
        return place
    if not place.is_dir():
        return None
    if (place / "_METADATA").exists():
        return None
    found = sorted(place.glob(f"*{safetensors.INDEX}"))
    found = found or sorted(place.glob("*.safetensors"))
    if len(found) > 1:
        raise ValueError(
            f"{place}: holds {len(found)} safetensors files and no index of them, "
            f"needed one; give one of:\n{listed(x.name for x in found)}"
        )
    return found[0] if found else None


def open_file(file: Path) -> tuple[str, PyTree[LazyArray]]:
    """Return the arrays of a file by what it says of them.

    Args:
        file: from `find_file`.

    Returns:
        The format, and a dict of arrays by name, or a tree of them.

    Raises:
        ValueError: if the file is damaged, not of the format its ending says, or of
            none that is known.
    """
    if file.name.endswith(safetensors.INDEX):
        return "safetensors", safetensors.open_index(file)
    meant, found = format_of(file), _sniffed(file)
    if meant and found != meant:
        begins = (
            f"begins as {_article(found)} file" if found else "does not begin as one"
        )
        raise ValueError(
            f"{file}: is no {meant} file, it {begins}, needed what its ending says; "
            "rename it or copy it again."
        )
    if found == "safetensors":
        return found, safetensors.open_safetensors(file)
    if found == "npz":
        return found, npz.open_npz(file)
    if found == "msgpack":
        return found, msgpack.open_msgpack(file)
    raise ValueError(
        f"{file}: is a file of no format that can be read, needed {', '.join(ENDINGS)} "
        "or the directory of an orbax checkpoint; nothing is ever unpickled, convert "
        "it where it was made."
    )


def write_file(file: Path, kind: str, leaves: Mapping[Route, LazyArray]) -> None:
    """Write arrays to a file, each read when it is its turn.

    Args:
        file: where.
        kind: one of the values of `ENDINGS`; for msgpack all are read at once.
        leaves: keys in the tree -> array, of types that the format has; in flat
            formats the names are the keys joined by `/`.
    """
    if kind == "msgpack":
        text = [(tuple(map(str, keys)), leaf.read()) for keys, leaf in leaves.items()]
        msgpack.write_msgpack(file, nested(str(file), text))
        return
    named = {"/".join(map(str, keys)): leaf for keys, leaf in leaves.items()}
    if kind == "npz":
        npz.write_npz(file, named)
    else:
        safetensors.write_safetensors(file, named)


def can_hold(kind: str, dtype: np.dtype) -> bool:
    """Whether a format has a way to store a type.

    Args:
        kind: one of the values of `ENDINGS`.
        dtype: of numbers, numpy's or one of those that JAX adds.
    """
    if kind == "safetensors":
        return safetensors.can_hold(dtype)
    return kind != "npz" or npz.can_hold(dtype)


def _sniffed(file: Path) -> str | None:
    """Return the format that the first bytes of a file are of."""
    with file.open("rb") as opened:
        start = opened.read(9)
    if start[8:] == b"{" and start[5:8] == b"\0\0\0":
        return "safetensors"
    if start[:4] in (b"PK\3\4", b"PK\5\6"):
        return "npz"
    first = start[0] if start else 0
    is_map = 0x80 < first < 0x90 or first in (0xDE, 0xDF)
    return "msgpack" if is_map else None


def _article(kind: str) -> str:
    return f"an {kind}" if kind == "npz" else f"a {kind}"
