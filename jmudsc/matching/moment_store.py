"""Moment store: co-moments that have no room in memory, in a file that goes with them.

The file has no name: it takes no room on disk any more once nothing refers to what is
in it, or the process ends, in whatever way.
"""

import contextlib
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, cast

import numpy as np

from jmudsc.lazy import LazyArray
from jmudsc.matching.moments import Moments
from jmudsc.sharding import to_host


def _unnamed() -> BinaryIO:
    with _with_room("a temporary file"):
        return cast(BinaryIO, tempfile.TemporaryFile(prefix="jmudsc-", buffering=0))


@dataclass(frozen=True)
class MomentStore:
    """Where co-moments lie on disk.

    Attributes:
        file: all of them, one after the other; in the folder for temporary files.
    """

    file: BinaryIO = field(default_factory=_unnamed)

    def __post_init__(self) -> None:
        """See to it that the file is closed when the store is gone."""
        weakref.finalize(self, self.file.close)

    def put(self, moments: Moments) -> Moments:
        """Write the co-moment of a label.

        Args:
            moments: of the label, wherever they are.

        Returns:
            The same; the mean is on the host, the co-moment is read when it is needed.

        Raises:
            OSError: if the disk is full.
        """
        values = np.ascontiguousarray(to_host(moments.comoment))
        with _with_room(f"{values.nbytes} bytes of co-moments"):
            start = self.file.seek(0, os.SEEK_END)
            left = values.data.cast("B")
            while left:
                left = left[self.file.write(left) :]
        shape, dtype = values.shape, values.dtype

        def fetch(names: Sequence[str]) -> Mapping[str, Any]:
            self.file.seek(start)
            size = int(np.prod(shape))
            read = np.fromfile(self.file, dtype, size).reshape(shape)
            return dict.fromkeys(names, read)

        comoment = LazyArray("comoment", shape, dtype, fetch)
        return replace(moments, mean=to_host(moments.mean), comoment=comoment)


@contextlib.contextmanager
def _with_room(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise OSError(
            f"collect: expected room for {what} in {folder}, got an error ({error}). "
            "Set TMPDIR to a folder on a disk that has it, or allow more memory."
        ) from error
