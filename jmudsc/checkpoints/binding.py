"""Binding: which record belongs to which files, and whether all are as they were saved.

The record of a directory is inside it, in a folder. That of a file is in a folder
beside it: the two cannot be put into place at once, so the record has the digest of the
file, and where a save is or was under way, the record is the one that has.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from jmudsc.checkpoints.atomic import unfinished
from jmudsc.checkpoints.formats import format_of
from jmudsc.checkpoints.provenance import (
    has_record,
    names_beside,
    read_record,
    size_and_digest,
)
from jmudsc.paths import listed

# Inside a directory; beside a file, what is put after its name.
_INSIDE, _BESIDE = "jmudsc", ".jmudsc"


@dataclass(frozen=True)
class Bound:
    """A record that was found.

    Attributes:
        folder: where it is.
        content: its JSON values.
    """

    folder: epath.Path
    content: Mapping[str, Any]


def records_of(place: os.PathLike[str]) -> epath.Path:
    """Return the folder of what is stored beside variables.

    Args:
        place: the checkpoint, which need not be there.
    """
    here = epath.Path(place)
    if format_of(here).endings or here.is_file():
        return here.with_name(here.name + _BESIDE)
    return here / _INSIDE


def find_record(place: os.PathLike[str]) -> Bound | None:
    """Return the record of a checkpoint, also through symbolic links.

    Args:
        place: a file, or a directory of orbax.

    Returns:
        The record; None if there is none.

    Raises:
        ValueError: if it is damaged, or of a later version.
    """
    here = [records_of(place)]
    if "://" not in os.fspath(place):
        here.append(records_of(Path(place).resolve()))
    there = [folder for folder in dict.fromkeys(here) if folder.exists()]
    if Path(place).is_file():
        left = [x for folder in here for x in unfinished(Path(folder))]
        if bound := _bound(
            Path(place), [*there, *dict.fromkeys(map(epath.Path, left))]
        ):
            return bound
    content = read_record(there[0]) if there else None
    return None if content is None else Bound(there[0], content)


def stamps(place: str | os.PathLike[str]) -> tuple[Any, ...]:
    """Return what changes when something is put in the place of a checkpoint."""
    if "://" in os.fspath(place):
        return ()
    here = Path(os.path.realpath(os.path.expanduser(place)))
    folder = Path(records_of(here))
    seen = [here, folder, *unfinished(folder)]
    found = [(str(x), x.stat()) for x in seen if x.exists()]
    # One that was replaced twice may have its old number again, but not its old time.
    return tuple((name, at.st_ino, at.st_ctime_ns) for name, at in found)


def files_of(place: Path) -> dict[str, list[Any]]:
    """Return size and SHA-256 of every file of a checkpoint but those of its record.

    Args:
        place: a file, which is called nothing, or a directory.
    """
    return {name: size_and_digest(file) for name, file in _files(place)}


def resized(place: os.PathLike[str], content: Mapping[str, Any]) -> list[str]:
    """Return the files of a record that are not there or have another size.

    Args:
        place: the checkpoint; nothing is told of one that is not local.
        content: its record.
    """
    if "://" in os.fspath(place):
        return []
    files = {name: Path(place, name) for name in content.get("files", {})}
    return [
        name or Path(place).name
        for name, file in files.items()
        if not file.is_file() or file.stat().st_size != content["files"][name][0]
    ]


def rewritten(place: os.PathLike[str], content: Mapping[str, Any]) -> list[str]:
    """Return the files of a record that are not as they were saved; reads them all.

    Args:
        place: as for `resized`.
        content: as for `resized`.
    """
    if "://" in os.fspath(place):
        return []
    files = {name: Path(place, name) for name in content.get("files", {})}
    return [
        name or Path(place).name
        for name, file in files.items()
        if not file.is_file() or size_and_digest(file) != content["files"][name]
    ]


def check_replaceable(place: Path, quick: bool = False) -> None:
    """Check that a checkpoint is what jmudsc saved, with nothing else in it.

    Args:
        place: what is to be replaced, or nothing but a folder for its record.
        quick: whether sizes are enough, and nothing is read but the record.

    Raises:
        FileExistsError: if it is anything else, or has more in it.
    """
    folder = Path(records_of(place))
    if not place.exists() and not folder.exists():
        return
    if place.is_dir() and not any(place.iterdir()):
        return
    try:
        bound = find_record(place)
    except ValueError as error:
        raise FileExistsError(
            f"{place}: expected what jmudsc saved, got something else, which "
            "overwrite=True never replaces. Remove it yourself or choose another "
            f"path:\n  {error}"
        ) from error
    if bound is None or "files" not in bound.content:
        raise FileExistsError(
            f"{place if place.exists() else folder}: expected what jmudsc saved, got "
            "something else, which overwrite=True never replaces. Remove it yourself "
            "or choose another path."
        )
    strange = _foreign(place, folder, bound.content)
    if place.exists():
        changed = (resized if quick else rewritten)(place, bound.content)
        strange += [f"{place.name}/{x}" if place.is_dir() else x for x in changed]
    if strange:
        raise FileExistsError(
            f"{place}: expected nothing but what jmudsc saved, got {len(strange)} "
            "changed or other files, which overwrite=True never removes. Move them "
            f"away or choose another path:\n{listed(sorted(strange))}"
        )


def _foreign(place: Path, folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Return what is in a directory or beside a file that no record names."""
    beside = content if place.is_dir() else read_record(epath.Path(folder))
    if beside is None:  # the folder of a file is yet to be put into place
        return []
    ours = {folder / name for name in names_beside(beside)} | {folder}
    ours |= {place / name for name in content["files"]} if place.is_dir() else set()
    ours |= {parent for name in ours for parent in name.parents}
    there = {*folder.rglob("*"), *(place.rglob("*") if place.is_dir() else ())}
    edited = {
        folder / name
        for name, stamp in beside.get("beside", {}).items()
        if (folder / name).is_file() and size_and_digest(folder / name) != stamp
    }
    return [str(x.relative_to(place.parent)) for x in (there - ours) | edited]


def _bound(place: Path, folders: list[epath.Path]) -> Bound | None:
    """Return the record of a file among several, by its digest; None of one alone."""
    if len(folders) < 2 and not any(_BESIDE + ".jmudsc-" in str(x) for x in folders):
        return None
    stamp: list[Any] = []
    for folder in folders:
        try:
            content = read_record(folder) if has_record(folder) else None
        except (ValueError, OSError):
            continue
        if content is None or content.get("files", {}).keys() != {""}:
            continue
        stamp = stamp or size_and_digest(place)
        if content["files"][""] == stamp:
            return Bound(folder, content)
    return None


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    if place.is_file():
        yield "", place
        return
    for file in sorted(place.rglob("*")):
        name = file.relative_to(place)
        if file.is_file() and name.parts[0] != _INSIDE:
            yield name.as_posix(), file
