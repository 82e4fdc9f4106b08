"""Filling: a file of arrays that threads and processes write, and taken up again.

Where each array lies in the file is known before any of them is. They are computed side
by side, as many as there is memory for, and written to their places; a line in a log
says of each that it is there, and with which digest. If the process dies, the next one
for the same arrays keeps those whose digests are right, and computes the others.
"""

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jmudsc.checkpoints.provenance import leaf_digest
from jmudsc.digests import digest_of
from jmudsc.lazy import LazyArray
from jmudsc.progress import Progress, silent

# The file of arrays, and the log of those that are there.
FILE, _LOG = "leaves", "done"


@dataclass(frozen=True, eq=False)
class Filling:
    """How arrays are computed and kept until all are there.

    Attributes:
        folder: where they are kept; made when it is needed.
        identity: what decides them: what is kept under another one is not used.
        memory: bytes that computing them may take at once; one alone may take more.
        threads: how many are computed at once at most.
        progress: called with the stage, how many are there, and of how many.
    """

    folder: Path
    identity: str
    memory: int
    threads: int
    progress: Progress = silent


@dataclass(frozen=True)
class Table:
    """Where arrays lie in a file.

    Attributes:
        head: the first bytes of the file.
        places: name of each array, in the order of their places -> its first byte.
        size: bytes of the whole file.
    """

    head: bytes
    places: Mapping[str, int]
    size: int


@dataclass(eq=False)
class _Room:
    """Memory that is taken by what is being computed."""

    left: int
    taken: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)

    @contextlib.contextmanager
    def of(self, size: int) -> Iterator[None]:
        """Give back what `take` took."""
        try:
            yield
        finally:
            with self.changed:
                self.left += size
                self.taken -= size
                self.changed.notify()

    def take(self, size: int) -> None:
        """Wait until there is room, or nobody else has any."""
        with self.changed:
            self.changed.wait_for(lambda: size <= self.left or not self.taken)
            self.left -= size
            self.taken += size


def table_of(leaves: Mapping[str, LazyArray]) -> Table:
    """Lay arrays out one after the other, with nothing before them."""
    places, end = {}, 0
    for name, leaf in leaves.items():
        places[name] = end
        end += leaf.nbytes
    return Table(b"", places, end)


def fill(
    filling: Filling, leaves: Mapping[str, LazyArray], table: Table
) -> tuple[Path, dict[str, str]]:
    """Compute arrays and write them to a file, but for those that are in it already.

    Args:
        filling: how.
        leaves: name -> array.
        table: where each lies.

    Returns:
        The file, with all of them, and name -> digest.
    """
    digests = dict.fromkeys(leaves, "") | begin(filling, leaves, table)
    missing = [name for name in table.places if not digests[name]]
    _compute(filling, leaves, table, filling.folder / _LOG, missing, digests)
    return filling.folder / FILE, digests


def fill_share(
    filling: Filling,
    leaves: Mapping[str, LazyArray],
    table: Table,
    number: int,
    count: int,
) -> None:
    """Compute the share of one of several processes, and write it to the file of all.

    One process calls `begin` before, and `fill` when all have done their shares: that
    checks what is there, and computes what is not.

    Args:
        filling: how, with one folder for all.
        leaves: name -> array.
        table: where each lies.
        number: of this process.
        count: of processes.
    """
    log = filling.folder / _LOG
    digests = dict.fromkeys(leaves, "")
    digests |= _logged(log, _identity(filling, table)) or {}
    missing = [name for name in table.places if not digests[name]]
    own = _shares(missing, leaves, count)[number]
    share = log.with_name(f"{_LOG}-{number}")
    share.write_text(json.dumps(_identity(filling, table)) + "\n")
    _compute(filling, leaves, table, share, own, digests)


def _shares(
    names: Sequence[str], leaves: Mapping[str, LazyArray], count: int
) -> list[list[str]]:
    """Deal arrays out to processes, such that all have about as many bytes."""
    shares: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(names, key=lambda name: -leaves[name].nbytes):
        least = sizes.index(min(sizes))
        shares[least].append(name)
        sizes[least] += leaves[name].nbytes
    return shares


def _compute(
    filling: Filling,
    leaves: Mapping[str, LazyArray],
    table: Table,
    log: Path,
    names: Sequence[str],
    digests: dict[str, str],
) -> None:
    """Compute arrays, write them to their places, and tell their digests."""
    room, lock = _Room(filling.memory), threading.Lock()
    has_failed = threading.Event()
    with (filling.folder / FILE).open("r+b") as opened, log.open("a") as lines:

        def put(name: str, size: int) -> None:
            with room.of(size):
                if has_failed.is_set():
                    return
                try:
                    array = np.asarray(leaves[name].read())
                    digest = leaf_digest(array)
                    _write_at(opened.fileno(), array, table.places[name])
                except BaseException:
                    has_failed.set()
                    raise
            with lock:
                digests[name] = digest
                lines.write(_line(name, digest))
                lines.flush()
                there = sum(map(bool, digests.values()))
                filling.progress("merging and writing", there, len(leaves))

        with ThreadPoolExecutor(filling.threads) as pool:
            tasks = []
            for name in names:
                size = leaves[name].nbytes + leaves[name].cost
                room.take(size)
                tasks.append(pool.submit(put, name, size))
            for task in as_completed(tasks):
                task.result()


def filled(file: Path, leaves: Mapping[str, LazyArray], table: Table) -> dict[str, Any]:
    """Return the arrays of a file that was filled, to be read from it."""

    def fetch(names: Sequence[str]) -> Mapping[str, Any]:
        return {name: read_at(file, leaves[name], table.places[name]) for name in names}

    return {
        name: replace(
            leaf, name=name, fetch=fetch, cost=0, part=None, fetch_spread=None
        )
        for name, leaf in leaves.items()
    }


def read_at(file: Path, leaf: LazyArray, place: int) -> np.ndarray:
    """Read an array from a place in a file.

    Args:
        file: where.
        leaf: of its shape and dtype.
        place: its first byte.

    Raises:
        EOFError: if the file ends before the array does.
    """
    data = np.empty(leaf.nbytes, np.uint8)
    view, done = data.data, 0
    with file.open("rb", buffering=0) as opened:
        while done < len(view):
            count = os.preadv(opened.fileno(), [view[done:]], place + done)
            if not count:
                raise EOFError(f"{file}: expected {leaf.nbytes} bytes at {place}")
            done += count
    return data.view(leaf.dtype).reshape(leaf.shape)


def begin(
    filling: Filling, leaves: Mapping[str, LazyArray], table: Table
) -> dict[str, str]:
    """Take up a file that was filled in part, or make a new one.

    Args:
        filling: how.
        leaves: name -> array.
        table: where each lies.

    Returns:
        Name -> digest of the arrays that are there.
    """
    file, log = filling.folder / FILE, filling.folder / _LOG
    identity = _identity(filling, table)
    known = _logged(log, identity) if file.is_file() else None
    if known is None or file.stat().st_size != table.size:
        shutil.rmtree(filling.folder, ignore_errors=True)
        filling.folder.mkdir(parents=True)
        with file.open("wb") as opened:
            opened.write(table.head)
            opened.truncate(table.size)
        log.write_text(json.dumps(identity) + "\n")
        return {}
    shares = sorted(filling.folder.glob(f"{_LOG}-*"))
    for share in shares:
        known |= _logged(share, identity) or {}
    known = {name: digest for name, digest in known.items() if name in table.places}
    with ThreadPoolExecutor(filling.threads) as pool:
        found = pool.map(lambda n: _digest_at(file, leaves[n], table.places[n]), known)
        pairs = zip(known.items(), found, strict=True)
        kept = {name: digest for (name, digest), here in pairs if here == digest}
    anew = log.with_suffix(".new")  # the last line of the old one may have no end
    lines = [_line(name, digest) for name, digest in kept.items()]
    anew.write_text(json.dumps(identity) + "\n" + "".join(lines))
    os.replace(anew, log)
    for share in shares:
        share.unlink()
    return kept


def _identity(filling: Filling, table: Table) -> str:
    laid = repr((table.places, table.size)).encode()
    return digest_of([filling.identity.encode(), table.head, laid])


def _line(name: str, digest: str) -> str:
    return json.dumps([name, digest]) + "\n"


def _digest_at(file: Path, leaf: LazyArray, place: int) -> str:
    return leaf_digest(read_at(file, leaf, place))


def _logged(log: Path, identity: str) -> dict[str, str] | None:
    """Return the digests that a log tells of; None if it is of something else."""
    with contextlib.suppress(OSError, ValueError):
        first, *lines = log.read_text().splitlines()
        if json.loads(first) == identity:
            return dict(_pairs(lines))
    return None


def _pairs(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield names and digests, up to a line that was not written to its end."""
    for line in lines:
        try:
            name, digest = json.loads(line)
        except (ValueError, TypeError):
            return
        yield name, digest


def _write_at(descriptor: int, array: np.ndarray, place: int) -> None:
    view = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        done += os.pwrite(descriptor, view[done:], place + done)
