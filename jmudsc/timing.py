"""Timing: seconds that the stages of a merge take."""

import contextlib
import time
from collections.abc import Iterator


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
