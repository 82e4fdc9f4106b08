"""Chained: the batches of several tasks, one task after another, and whose they are."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from jaxtyping import PyTree


@dataclass(frozen=True)
class Chained:
    """Batches that can be gone through again, of one task after another.

    Attributes:
        tasks: the batches of each task, re-iterable.
    """

    tasks: tuple[Iterable[PyTree], ...]

    def __iter__(self) -> Iterator[PyTree]:
        """Go through the batches of all tasks."""
        for batches in self.tasks:
            yield from batches

    def owners(self) -> list[int]:
        """Return for each batch the number of its task; goes through them to count."""
        return [number for number, batches in enumerate(self.tasks) for _ in batches]
