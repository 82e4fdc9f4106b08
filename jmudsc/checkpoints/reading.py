"""Reading: arrays of the file that was opened, and whole ones, or one sentence."""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jmudsc.lazy import Fetch


@contextlib.contextmanager
def reading(
    where: str | os.PathLike[str], what: str, advice: str = "Copy it again."
) -> Iterator[None]:
    """Turn whatever a library raises on damaged files into one sentence.

    Args:
        where: the checkpoint, named in the error.
        what: what it should be, `"npz file"`.
        advice: what to do.

    Raises:
        ValueError: if anything is raised inside.
    """
    try:
        yield
    except Exception as error:  # the libraries have errors of many kinds
        raise ValueError(
            f"{where}: expected a whole {what}, got one that cannot be read "
            f"({first_line(error)}). {advice}"
        ) from error


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
                f"{where}: expected the checkpoint that was opened, got one that was "
                "written anew since. Load it again."
            )
        return found

    return read


def first_line(error: Exception) -> str:
    """Shorten an error, which may be 2 kB, to what says what happened."""
    line = str(error).strip().split("\n")[0]
    line = re.split(r" \[(?:tensorstore_spec|source locations)=", line)[0][:200]
    kind = type(error).__name__
    if type(error) is ValueError:
        return line or kind
    return f"{kind}: {line}" if line else kind


def _stamp(file: Path) -> tuple[int, int, int]:
    seen = file.stat()
    return seen.st_ino, seen.st_size, seen.st_mtime_ns
