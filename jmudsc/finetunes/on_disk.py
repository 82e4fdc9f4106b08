"""On disk: a leaf too large to be held, of which a few entries at a time are read."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jmudsc.finetunes.job import Job, LeafPlan, Leaves
from jmudsc.lazy import LazyArray

# Leaves that take less, in all models together, are read at once; and so many entries
# of others.
HELD, BLOCK = 1 << 29, 1 << 22


@dataclass(eq=False)
class OnDisk:
    """Runs of entries of a leaf, (runs, entries), read as they are asked for.

    Attributes:
        leaf: the leaf, that can be read in parts.
        runs: how many runs it has, one after the other.
    """

    leaf: LazyArray
    runs: int
    start: int = 0
    block: np.ndarray = field(default_factory=lambda: np.empty(0))

    @property
    def shape(self) -> tuple[int, int]:
        """The number of runs, and of the entries of each."""
        return self.runs, self.leaf.size // self.runs

    def __getitem__(self, place: tuple[int, slice]) -> np.ndarray:
        """Return the entries of a run from one place to another."""
        run, part = place
        size = self.shape[1]
        start, stop = run * size + part.start, run * size + min(part.stop, size)
        if self.start <= start and stop <= self.start + len(self.block):
            return self.block[start - self.start : stop - self.start]
        assert self.leaf.part is not None
        if start != self.start + len(self.block) and start % size:
            return self.leaf.part(start, stop)  # of a sample
        self.start = start
        self.block = self.leaf.part(start, min(start + BLOCK, (run + 1) * size))
        return self[place]


def is_read_in_parts(job: Job, plan: LeafPlan) -> bool:
    """Whether a leaf is so large that it is merged a few entries at a time from disk.

    Args:
        job: the merge.
        plan: how the leaf is merged.
    """
    stored = [*_stored(job, plan), job.donor(plan.path)]
    can_be = all(isinstance(leaf, LazyArray) and leaf.part for leaf in stored)
    is_large = sum(getattr(leaf, "nbytes", 0) for leaf in stored) > HELD
    is_plain = not (plan.is_statistic or job.calibrate or plan.copied is not None)
    is_float = np.dtype(job.donor(plan.path).dtype).kind != "c"
    is_plain = is_plain and is_float and plan.layout.has_runs_in_order
    return bool(is_plain and plan.method.is_elementwise and can_be and is_large)


def read_in_parts(job: Job, path: str) -> tuple[Leaves, list[Any], Any]:
    """Return a leaf of which nothing is read, and what reads runs of it.

    Args:
        job: the merge.
        path: the leaf.

    Returns:
        The leaf; of each model its runs; and those of the base, None without one.
    """
    plan = job.plans[path]
    runs = plan.layout.count_of(tuple(job.donor(path).shape))
    stored = [OnDisk(leaf, runs) for leaf in _stored(job, plan)]
    has_base = len(stored) > len(job.models)
    models, base = stored[: len(job.models)], stored[-1] if has_base else None
    zeros = np.broadcast_to(np.zeros((), job.donor(path).dtype), job.donor(path).shape)
    return Leaves(plan, zeros, None, (), is_same=False), models, base


def is_same_on_disk(job: Job, plan: LeafPlan) -> bool:
    """Whether a leaf has the same bits in all models, and the base if it counts.

    Args:
        job: the merge.
        plan: how the leaf is merged.
    """
    first, *others = _stored(job, plan)[::-1]
    if any(leaf.dtype != first.dtype for leaf in others):
        return False
    return all(
        np.array_equal(*(x.part(start, stop).view(np.uint8) for x in (first, leaf)))
        for start, stop in _blocks(first.size)
        for leaf in others
    )


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def _stored(job: Job, plan: LeafPlan) -> list[Any]:
    """Return the leaf in all models, and in the base if the method takes one."""
    base = [] if job.base is None or plan.method.base == "unused" else [job.base]
    return [tree[plan.path] for tree in (*job.models, *base)]
