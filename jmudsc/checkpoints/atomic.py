"""Directories and files that are there whole or not at all.

Either is built under a hidden name beside its destination, flushed to disk, and moved
into place by one rename. What a killed process leaves is never at the destination, and
is removed by the next build for it.
"""

import contextlib
import ctypes
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

# Linux's fcntl.h and fs.h: paths are relative to the working directory; swap names.
_HERE, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2


def _nothing() -> None:
    """Check nothing."""


@contextlib.contextmanager
def building(
    target: Path, overwrite: bool = False, check: Callable[[], None] = _nothing
) -> Iterator[Path]:
    """Yield a path at which to build a directory or file that is `target` afterwards.

    Args:
        target: absolute; on a local POSIX file system. Missing parents are made.
        overwrite: replace what is at `target`, once the new one is complete.
        check: called before anything is put into place, while no other process does
            that in the same directory; raises if nothing must be.

    Yields:
        A path beside `target` at which nothing is yet.

    Raises:
        FileExistsError: if something came to be at `target` meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(_siblings(target, "tmp"))
    with _token() as token:
        temporary = _hidden(target, token)
        try:
            yield temporary
            _flush(temporary)
            with _alone_in(target.parent):
                check()
                _put(temporary, target, token, overwrite)
        finally:
            _remove(_made(token, target))
    _remove(_siblings(target, "old"))


@contextlib.contextmanager
def building_both(
    target: Path,
    beside: Path,
    overwrite: bool = False,
    check: Callable[[], None] = _nothing,
) -> Iterator[tuple[Path, Path]]:
    """Yield paths at which to build a file, and a folder that belongs to it.

    The file is put into place first, and what interrupted builds left of the folder is
    kept until both are: at every moment the folder of the file that is there is there,
    if only under a hidden name.

    Args:
        target: of the file; as for `building`.
        beside: of the folder, in the same directory; replaces what is there.
        overwrite: as for `building`.
        check: as for `building`.

    Yields:
        Paths for the file and for the folder at which nothing is yet.

    Raises:
        FileExistsError: if something came to be at `target` meanwhile.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(_siblings(target, "tmp"))
    with _token() as token:
        file, folder = _hidden(target, token), _hidden(beside, token)
        try:
            yield file, folder
            _flush(file)
            _flush(folder)
            with _alone_in(target.parent):
                check()
                _put(file, target, token, overwrite)
                _put(folder, beside, token, overwrite=True)
        finally:
            _remove(_made(token, target, beside))
    _remove([*_siblings(target, "old"), *_siblings(beside, "tmp")])
    _remove(_siblings(beside, "old"))


def _made(token: str, *targets: Path) -> list[Path]:
    """Return what is left of a build, orbax's own hidden directories included."""
    kind = f"tmp-{token}"
    return [x for target in targets for x in _siblings(target, kind, all_of_them=True)]


def unfinished(target: Path) -> list[Path]:
    """Return what builds of a directory or file have beside it, or have left there."""
    if not target.parent.is_dir():
        return []
    kinds = ("tmp", "old")
    return [x for kind in kinds for x in _siblings(target, kind, all_of_them=True)]


# What marks the builds of this process that are under way.
_TOKENS: set[str] = set()


@contextlib.contextmanager
def _token() -> Iterator[str]:
    token = f"{os.getpid()}-{secrets.token_hex(4)}"
    _TOKENS.add(token)
    try:
        yield token
    finally:
        _TOKENS.discard(token)


def _hidden(target: Path, token: str) -> Path:
    return target.with_name(f".{target.name}.jmudsc-tmp-{token}")


@contextlib.contextmanager
def at_rest(directory: Path) -> Iterator[None]:
    """Let no process put anything into place in a directory that `building` builds.

    Where the file system has no locks nothing is waited for.

    Args:
        directory: with what is not to change.
    """
    with _locked(directory, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Wait until no other process puts anything into place in a directory."""
    with _locked(directory, fcntl.LOCK_EX) as descriptor:
        yield
        os.fsync(descriptor)


@contextlib.contextmanager
def _locked(directory: Path, how: int) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def _put(temporary: Path, target: Path, token: str, overwrite: bool) -> None:
    if overwrite and target.exists():
        _rename_over(temporary, target, token)
    else:
        _rename_to_free(temporary, target)


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


def _siblings(target: Path, kind: str, all_of_them: bool = False) -> list[Path]:
    """Return hidden siblings that builds made, or only those that none will need."""
    start = f".{target.name}.jmudsc-{kind}"
    found = [x for x in target.parent.iterdir() if x.name.startswith(start)]
    lead = len(f".{target.name}.jmudsc-tmp-")
    return [x for x in found if all_of_them or not _is_under_way(x.name[lead:])]


def _is_under_way(token: str) -> bool:
    return token in _TOKENS or _is_other_process(token.split("-")[0])


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
