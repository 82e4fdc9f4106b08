"""Publishing: what was saved locally, put at a URL as whole as an object store allows.

A store of objects replaces one of them at once, and no more. So everything is first
brought there under hidden names; then a file is replaced, and the record that it has
under a hidden name is its record from that moment on. Of a directory the object by
which orbax knows a finished checkpoint is removed first and put last: in between it
is told to be unfinished, never read half. Nothing is deleted but what is replaced.
"""

import contextlib
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from jmudsc.checkpoints.binding import records_of
from jmudsc.checkpoints.reading import first_line
from jmudsc.checkpoints.urls import file_system

_MARKER = "_METADATA"


@dataclass(frozen=True)
class Move:
    """A file on its way.

    Attributes:
        built: where it was built.
        hidden: its name in the store at first.
        final: its name in the store at last.
    """

    built: Path
    hidden: str
    final: str


def publish(built: Path, target: epath.Path, overwrite: bool) -> None:
    """Put a checkpoint that was saved locally at a URL.

    Args:
        built: the file or directory; its record is inside it or beside it.
        target: where it is to be.
        overwrite: replace what is there, which is known to be what jmudsc saved.

    Raises:
        FileExistsError: if something came to be there meanwhile.
        ValueError: if it cannot be written.
    """
    system, at = file_system(str(target))
    moves = _moves(built, at, secrets.token_hex(4))
    with _hidden(system, moves, target):
        for move in moves:
            system.put_file(str(move.built), move.hidden)
        system.invalidate_cache()
        old = _there(system, at, built)
        if old and not overwrite:
            raise FileExistsError(
                f"{target}: expected a free path, got what another process made "
                "meanwhile. Choose another."
            )
        marker = f"{at}/{_MARKER}"
        if marker in old:
            system.rm_file(marker)
        for move in moves:
            system.cp_file(move.hidden, move.final)
        for name in old - {move.final for move in moves} - {marker}:
            system.rm_file(name)


@contextlib.contextmanager
def _hidden(system: Any, moves: list[Move], target: epath.Path) -> Iterator[None]:
    """Remove what is under hidden names, whatever happens; tell errors by the URL."""
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:  # every package has errors of its own
        raise ValueError(
            f"{target}: expected room and the right to write, got an error "
            f"({first_line(error)}). Check the rights and the network, and save again."
        ) from error
    finally:
        with contextlib.suppress(Exception):
            system.invalidate_cache()
            for move in moves:
                if system.exists(move.hidden):
                    system.rm_file(move.hidden)
            system.invalidate_cache()


def _moves(built: Path, at: str, token: str) -> list[Move]:
    """Return all files of a checkpoint in the order in which they are put there."""
    folder, _, last = at.rpartition("/")
    hidden = f"{folder}/.{last}.jmudsc-tmp-{token}"
    if built.is_dir():
        inside = _inside(built)
        order = sorted(inside, key=lambda name: (name == _MARKER, name))
        return [Move(inside[x], f"{hidden}/{x}", f"{at}/{x}") for x in order]
    record = Path(records_of(built))
    beside = f"{folder}/.{record.name}.jmudsc-tmp-{token}"
    told = _inside(record) if record.is_dir() else {}
    return [
        Move(built, hidden, at),
        *(
            Move(file, f"{beside}/{x}", f"{folder}/{record.name}/{x}")
            for x, file in sorted(told.items())
        ),
    ]


def _inside(folder: Path) -> Mapping[str, Path]:
    files = (x for x in folder.rglob("*") if x.is_file())
    return {x.relative_to(folder).as_posix(): x for x in files}


def _there(system: Any, at: str, built: Path) -> set[str]:
    """Return the names of all files of what is at the target, its record's included."""
    places = [at] if built.is_dir() else [at, f"{at}.jmudsc"]
    return {name for place in places for name in system.find(place)}
