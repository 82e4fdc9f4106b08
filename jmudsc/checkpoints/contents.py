"""Contents: what tells a checkpoint from all others, wherever it lies."""

import hashlib
import os

from jmudsc.checkpoints.binding import records_of
from jmudsc.checkpoints.formats import files_at
from jmudsc.checkpoints.provenance import CARD, size_and_digest
from jmudsc.checkpoints.urls import is_url


def contents_digest(path: str | os.PathLike[str]) -> str | None:
    """Return the SHA-256 of a checkpoint; reads all of it.

    Args:
        path: as for `load`.

    Returns:
        Of a single file what `sha256sum FILE` prints. Of several files that of the
        lines that `sha256sum` prints for them, with their paths in the directory, in
        the order of the paths, without a card and a record. None of what is at a URL.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there is not a whole checkpoint, or is several.
    """
    if is_url(path):
        return None
    place, every = files_at(path)
    files = [file for file in every if file.is_file()]
    if place.is_file() and len(files) == 1:
        return size_and_digest(files[0])[1]
    root = place if place.is_dir() else place.parent
    named = {file.relative_to(root).as_posix(): file for file in files}
    beside = (CARD, f"{records_of(root).name}/")
    lines = [
        f"{size_and_digest(named[name])[1]}  {name}\n"
        for name in sorted(named)
        if not name.startswith(beside)
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
