"""Progress: what is being done, how much of it, and how long it took."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass

from jaxtyping import PyTree

# Called with what is being done, how much of it is done, and out of how much.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Counted:
    """Batches that tell how many were read.

    Attributes:
        batches: any iterable; one that can be read again counts anew.
        stage: what they are read for.
        progress: called before each.
    """

    batches: Iterable[PyTree]
    stage: str
    progress: Progress

    def __iter__(self) -> Iterator[PyTree]:
        """Go through the batches."""
        total = len(self.batches) if isinstance(self.batches, Sized) else None
        for done, batch in enumerate(self.batches):
            self.progress(self.stage, done, total)
            yield batch


def silent(stage: str, done: int, total: int | None) -> None:
    """Tell nothing."""


def prefixed(progress: Progress | None, prefix: str) -> Progress:
    """Put something before what is being done.

    Args:
        progress: who is told; None for nobody.
        prefix: what to put before.

    Returns:
        A function that tells it.
    """
    if progress is None:
        return silent
    return lambda stage, done, total: progress(f"{prefix}{stage}", done, total)


@contextlib.contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the time that a block takes to that of a stage.

    What the block starts on a device it should wait for.

    Args:
        seconds: stage -> seconds so far, changed in place.
        stage: what the block does.
    """
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
