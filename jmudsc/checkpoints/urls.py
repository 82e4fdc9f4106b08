"""URLs: the file systems that they name, and copies of what lies there.

What is read from another file system than `gs://`, which orbax reads itself, is copied
to a temporary folder of this process, once as long as it stays the same, and read
there. What is saved is built and read back there, and then put into place.
"""

import atexit
import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from etils import epath

from jmudsc.checkpoints.reading import first_line

AnyPath = Path | epath.Path


def is_url(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a file system.

    Example:
        >>> is_url("s3://bucket/run"), is_url("runs/a")
        (True, False)
    """
    return "://" in os.fspath(path)


def path_of(path: str | os.PathLike[str]) -> AnyPath:
    """Return a path of a local file system, or of the one that a URL names."""
    return reached(os.fspath(path)) if is_url(path) else Path(path)


def folder_of(path: AnyPath) -> AnyPath:
    """Return the absolute path of the folder that a file is in."""
    return path.parent if is_url(path) else Path(path).absolute().parent


def reached(url: str) -> epath.Path:
    """Return the path of a URL whose file system is installed and answers.

    Args:
        url: `gs://bucket/run`, say.

    Raises:
        ValueError: if there is no such file system, no package for it, or no answer.
    """
    try:
        place = epath.Path(url)
        _forget_listings(place)
        place.exists()
    except ImportError as error:
        raise ValueError(
            f"{url}: expected a file system that is installed, got one without its "
            f"package: {error}. Install that, or copy the checkpoint here."
        ) from error
    except (KeyError, NotImplementedError) as error:
        scheme = url.partition("://")[0]
        raise ValueError(
            f"{url}: expected a file system that etils.epath knows, such as gs:// or "
            f"s3://, got {scheme}://. Copy the checkpoint here."
        ) from error
    except Exception as error:  # every package has errors of its own
        raise ValueError(
            f"{url}: expected a file system that answers, got an error "
            f"({first_line(error)}). Check the name, the rights and the network."
        ) from error
    return place


def _forget_listings(place: epath.Path) -> None:
    """Have a file system look anew, whatever it saw before."""
    import fsspec

    scheme = os.fspath(place).partition("://")[0]
    fsspec.filesystem(scheme).invalidate_cache()


@dataclass(frozen=True)
class Copied:
    """What was copied of a URL.

    Attributes:
        state: what its files were then.
        names: those that were copied.
    """

    state: str
    names: frozenset[str]


# URL -> what was copied of it.
_COPIES: dict[str, Copied] = {}


@cache
def _root() -> Path:
    """Return the folder of the copies of this process."""
    root = Path(tempfile.mkdtemp(prefix="jmudsc-copies-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def local_name(url: str) -> Path:
    """Return where the copy of a URL is, or would be."""
    scheme, _, rest = url.partition("://")
    return _root() / f"{scheme}:" / rest.strip("/")


def by_urls(text: str) -> str:
    """Put the URLs into an error in the place of their copies."""
    if not _COPIES:
        return text
    return re.sub(re.escape(str(_root())) + r"/(\w+):/", r"\1://", text)


def copied(url: str, wanted: Callable[[Path], Path]) -> Path:
    """Return a local copy of what is at a URL: of one checkpoint there.

    Args:
        url: a file or a directory, in which there may be many more.
        wanted: the folder or file to copy, found in a local folder that has the names
            of all files of the URL, but nothing in them.

    Returns:
        The copy of what was found, with the folder of its record, if it has one.

    Raises:
        FileNotFoundError: if nothing is at the URL.
        ValueError: as `reached` does, or what `wanted` raises.
    """
    reached(url)
    system, at = file_system(url)
    files = _files(system, at)
    if not files:
        raise FileNotFoundError(
            f"{url}: expected a checkpoint, got nothing. Check the path."
        )
    scheme = url.partition("://")[0]
    here = {name: local_name(f"{scheme}://{name}") for name in files}
    state = repr(sorted(files.items()))
    known = _COPIES.get(url)
    if known is None or known.state != state:
        _clear(local_name(url))
        known = Copied(state, frozenset())
    for name in files.keys() - known.names:
        here[name].parent.mkdir(parents=True, exist_ok=True)
        here[name].touch()
    found = wanted(local_name(url))
    inside = {name for name in files if _belongs(here[name], found)}
    for name in sorted(inside - known.names):
        system.get_file(name, str(here[name]))
    _COPIES[url] = Copied(state, known.names | inside)
    return found


def _belongs(file: Path, found: Path) -> bool:
    """Whether a file is what was found, is in it, or is of its record.

    Of files with an index all that lie beside it are taken.
    """
    if found in (file, *file.parents):
        return True
    if found.name.endswith(".index.json") and file.parent == found.parent:
        return file.suffix == ".safetensors"
    return any(x.parent == found.parent and _tells(x, found) for x in file.parents)


def _tells(folder: Path, found: Path) -> bool:
    beside = f"{found.name}.jmudsc"
    return folder.name == beside or folder.name.startswith(f".{beside}.jmudsc-")


def file_system(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the name that it has for what is there."""
    import fsspec

    return fsspec.core.url_to_fs(url)


def _files(system: Any, at: str) -> dict[str, str]:
    """Return name -> state of every file at a place, with those that tell of a file."""
    found: dict[str, Mapping[str, Any]] = dict(system.find(at, detail=True))
    if system.isfile(at):
        folder, _, last = at.rpartition("/")
        for entry in system.ls(folder, detail=False):
            if _tells(Path(entry.rstrip("/")), Path(last)):
                found |= system.find(entry, detail=True)
    return {name: repr(sorted(x.items(), key=str)) for name, x in found.items()}


def _clear(here: Path) -> None:
    for copy in (here, here.with_name(f"{here.name}.jmudsc")):
        if copy.is_dir():
            shutil.rmtree(copy)
        else:
            copy.unlink(missing_ok=True)


@contextlib.contextmanager
def named_by_urls() -> Iterator[None]:
    """Have errors about copies name their URLs."""
    try:
        yield
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        text = str(error)
        if by_urls(text) == text:
            raise
        raise type(error)(by_urls(text)) from error
