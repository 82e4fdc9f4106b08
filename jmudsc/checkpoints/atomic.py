"""Directories and files that are there whole or not at all.

Either is built under a hidden name beside its destination, flushed to disk, and moved
into place by one rename. What a killed process leaves is never at the destination, and
is removed by the next build for it.
"""

import contextlib
import ctypes
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

# Linux's fcntl.h and fs.h: paths are relative to the working directory; swap names.
_HERE, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2


@contextlib.contextmanager
def building(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a path at which to build a directory or file that is `target` afterwards.

    Args:
        target: absolute; on a local POSIX file system. Missing parents are made.
        overwrite: replace what is at `target`, once the new one is complete.

    Yields:
        A path beside `target` at which nothing is yet.

    Raises:
        FileExistsError: if something came to be at `target` meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(_siblings(target, "tmp"))
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.name}.jmudsc-tmp-{token}")
    try:
        yield temporary
        _flush(temporary)
        if overwrite and target.exists():
            _rename_over(temporary, target, token)
        else:
            _rename_to_free(temporary, target)
        _flush_directory(target.parent)
    finally:
        _remove(_siblings(target, f"tmp-{token}"))
    _remove(_siblings(target, "old"))


def discard(path: Path) -> None:
    """Remove a file or directory at once: it is there whole or not at all.

    Args:
        path: absolute; there may be nothing.
    """
    if path.exists():
        token = f"{os.getpid()}-{secrets.token_hex(4)}"
        away = path.with_name(f".{path.name}.jmudsc-old-{token}")
        os.rename(path, away)
        _remove([away])


def _rename_over(source: Path, target: Path, token: str) -> None:
    """Replace what is there: at every moment the old one or the new one is.

    Where the system cannot exchange two directories it takes two renames, and a process
    killed between them leaves the old one under a hidden name.
    """
    if _exchange(source, target):
        return
    if source.is_file() and target.is_file():
        os.replace(source, target)
        return
    old = target.with_name(f".{target.name}.jmudsc-old-{token}")
    os.rename(target, old)
    try:
        os.rename(source, target)
    except BaseException:
        os.rename(old, target)
        raise


def _exchange(source: Path, target: Path) -> bool:
    """Let two paths swap names at once; False where that is not to be had."""
    return _renamed(source, target, _RENAME_EXCHANGE)


def _renamed(source: Path, target: Path, how: int) -> bool:
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:  # not Linux with glibc
        return False
    names = os.fsencode(source), os.fsencode(target)
    return call(_HERE, names[0], _HERE, names[1], how) == 0


def _rename_to_free(source: Path, target: Path) -> None:
    # A plain rename would replace a file that came to be there meanwhile.
    if source.is_file() and _renamed(source, target, _RENAME_NOREPLACE):
        return
    try:
        if source.is_file() and target.exists():
            raise FileExistsError(target)
        os.rename(source, target)
    except OSError as error:
        if not target.exists():
            raise
        raise FileExistsError(
            f"{target}: expected a free path, got what another process made meanwhile. "
            "Choose another."
        ) from error


def remains(target: Path) -> list[Path]:
    """Return what interrupted builds of a directory or file have left beside it."""
    if not target.parent.is_dir():
        return []
    return [*_siblings(target, "tmp"), *_siblings(target, "old")]


def _siblings(target: Path, kind: str) -> list[Path]:
    """Return hidden siblings that an earlier build of this or a dead process left."""
    start = f".{target.name}.jmudsc-{kind}"
    found = [x for x in target.parent.iterdir() if x.name.startswith(start)]
    lead = len(f".{target.name}.jmudsc-tmp-")
    return [x for x in found if not _is_other_process(x.name[lead:].split("-")[0])]


def _is_other_process(pid: str) -> bool:
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(paths: list[Path]) -> None:
    for path in paths:
        if path.is_file():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _flush(built: Path) -> None:
    """Make sure that a file or a directory with all in it survives a power cut."""
    if built.is_file():
        with built.open("rb") as file:
            os.fsync(file.fileno())
    for folder, _, files in os.walk(built):
        for name in files:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        _flush_directory(Path(folder))


def _flush_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
