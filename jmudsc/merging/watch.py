"""Watch: tells which stage of a merge is being done, and how long each took."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from jmudsc.progress import Progress, silent, timed


@dataclass(frozen=True)
class Watch:
    """Who is told of stages, and the time they took.

    Attributes:
        progress: called with the stage, how much of it is done, and out of how much.
        seconds: stage -> seconds of wall time, filled while stages are done.
    """

    progress: Progress = silent
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(
        self, says: str | None, name: str, total: int | None = 1
    ) -> Iterator[None]:
        """Tell that a stage begins, and add the time that a block takes to it.

        Args:
            says: what is being done; None for what tells of itself.
            name: of the stage in `seconds`.
            total: how much there is to do; None where that is not known.
        """
        if says is not None:
            self.progress(says, 0, total)
        with timed(self.seconds, name):
            yield
