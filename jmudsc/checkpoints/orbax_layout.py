"""Find the array tree inside a directory that orbax wrote, whichever way it was asked.

An *item* is a directory with one tree. A checkpoint is an item (bare checkpointers,
Flax, jmudsc) or holds items by name (a step of a `CheckpointManager`, orbax v1); a
run's directory holds checkpoints.
"""

import os

from etils import epath

from jmudsc.checkpoints.urls import reached
from jmudsc.paths import listed

_UNFINISHED = ".orbax-checkpoint-tmp"
_TREE = "_METADATA"
_OLD_TREE = "checkpoint"  # orbax 0.4 wrote it beside _METADATA, others instead
_CHECKPOINT = "_CHECKPOINT_METADATA"
_REMAINS = (_CHECKPOINT, "commit_success.txt", "manifest.ocdbt", "array_metadatas", "d")


def find_item(path: str | os.PathLike[str]) -> epath.Path:
    """Return the one item at `path`.

    Args:
        path: an item, or a checkpoint with a single one.

    Raises:
        FileNotFoundError: if nothing is there.
        ValueError: if it is unfinished, is no checkpoint, or holds several.
    """
    place = _absolute(path)
    _check_finished_directory(place)
    if is_item(place):
        return place
    folders = _folders(place)
    checkpoints = [x for x in folders if _is_checkpoint(x)]
    items = [x for x in folders if is_item(x) and x not in checkpoints]
    if len(items) == 1:
        return items[0]
    if items:
        raise ValueError(_several(place, "items of one", items))
    if any(is_item(x) or _has_item(x) for x in checkpoints):
        what = "checkpoint" if len(checkpoints) == 1 else "checkpoints"
        raise ValueError(_several(place, what, checkpoints))
    raise ValueError(_no_item(place))


def _absolute(path: str | os.PathLike[str]) -> epath.Path:
    text = os.fspath(path)
    if "://" in text:
        return reached(text)
    return epath.Path(os.path.abspath(os.path.expanduser(text)))


def _check_finished_directory(place: epath.Path) -> None:
    if any(_UNFINISHED in part for part in place.parts):
        raise ValueError(
            f"{place}: expected a finished checkpoint, got what an interrupted save "
            "left. Use another step or save again."
        )
    if place.exists():
        return
    if place.parent.is_dir() and any(
        x.name.startswith(place.name + _UNFINISHED) for x in place.parent.iterdir()
    ):
        raise FileNotFoundError(
            f"{place}: expected a finished checkpoint, got {place.name}{_UNFINISHED} "
            "of an interrupted save beside it. Use another step or save again."
        )
    raise FileNotFoundError(
        f"{place}: expected a checkpoint, got nothing. Check the path."
    )


def is_item(place: os.PathLike[str]) -> bool:
    """Whether a directory has an array tree right in it."""
    place = epath.Path(place)
    return (place / _TREE).is_file() or (place / _OLD_TREE).is_file()


def _is_checkpoint(folder: epath.Path) -> bool:
    """Return whether a folder is a checkpoint rather than an item of one."""
    if (folder / _CHECKPOINT).exists() or _has_item(folder):
        return True
    # Orbax 0.4 wrote no such file: only the name tells a step of Flax from an item.
    is_in_checkpoint = (folder.parent / _CHECKPOINT).exists()
    return is_item(folder) and folder.name[-1].isdigit() and not is_in_checkpoint


def _has_item(place: epath.Path) -> bool:
    return any(is_item(x) for x in _folders(place))


def _folders(place: epath.Path) -> list[epath.Path]:
    """Return the finished directories in one, the last step first."""
    found = [x for x in place.iterdir() if x.is_dir() and not x.name.startswith(".")]
    finished = [x for x in found if _UNFINISHED not in x.name]
    return sorted(finished, key=_step_and_name, reverse=True)


def _step_and_name(place: epath.Path) -> tuple[int, str]:
    digits = place.name[len(place.name.rstrip("0123456789")) :]
    return int(digits or -1), place.name


def _several(place: epath.Path, what: str, found: list[epath.Path]) -> str:
    return (
        f"{place}: expected one checkpoint, got a directory of {len(found)} {what}. "
        f"Give {found[0]} or another of them:\n{listed(x.name for x in found)}"
    )


def _no_item(place: epath.Path) -> str:
    names = [x.name for x in place.iterdir()]
    if not names:
        return (
            f"{place}: expected an orbax checkpoint, got an empty directory. Check "
            "the path."
        )
    if any(name in _REMAINS or _UNFINISHED in name for name in names):
        return (
            f"{place}: expected a finished orbax checkpoint of arrays, got one without "
            f"{_TREE}: its save was interrupted or files were lost. Use another step "
            "or copy it again."
        )
    return (
        f"{place}: expected the directory of an orbax checkpoint, got one with no "
        f"{_TREE} in it or its folders. Check the path."
    )
