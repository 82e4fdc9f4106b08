"""Steady files: what is read of one is of the file that was opened, or an error."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jmudsc.lazy import Fetch


def steady(where: str, file: Path, fetch: Fetch) -> Fetch:
    """Return a way to read arrays that fails if they are no longer those opened.

    Leaves of the old and the new file would be mixed else. A file that is gone is not
    told here: either it is still open, or reading it fails.

    Args:
        where: the checkpoint, named in the error.
        file: a local one that is written anew whenever the checkpoint is.
        fetch: reads the arrays.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    was = _stamp(file)

    def read(names: Sequence[str]) -> Mapping[str, Any]:
        found = fetch(names)
        if file.exists() and _stamp(file) != was:
            raise ValueError(
                f"{where}: was written anew after it was opened, needed as it was; "
                "load it again."
            )
        return found

    return read


def _stamp(file: Path) -> tuple[int, int, int]:
    seen = file.stat()
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
