"""Batches: what calibration data must be, and whose task they are from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree


def check_iterable(where: str, batches: Any) -> None:
    """Check that batches are several things, and not one batch.

    Args:
        where: the caller, named in the error.
        batches: the calibration batches.

    Raises:
        TypeError: if they are no iterable, or an array or a mapping: a batch.
    """
    kind = type(batches).__name__
    if hasattr(batches, "shape") and hasattr(batches, "dtype"):
        kind = f"single array, {batches.dtype}{list(batches.shape)}"
    elif isinstance(batches, Iterable) and not isinstance(batches, Mapping):
        return
    raise TypeError(
        f"{where}: batches is a {kind}, it must be an iterable of batches; pass [x] "
        "for a single batch, list(x) for several that are stacked."
    )


def no_batches(where: str) -> ValueError:
    """Return the error of a pass over batches that came to none.

    Args:
        where: the caller, named in the error.
    """
    return ValueError(
        f"{where}: there are no batches, at least one is needed; pass a list of "
        "batches (an iterator may already have been consumed)."
    )


def first_batch(where: str, batches: Iterable[PyTree]) -> PyTree:
    """Return the first of some batches.

    Args:
        where: the caller, named in the error.
        batches: a re-iterable.

    Raises:
        ValueError: if there are none.
    """
    for batch in batches:
        return batch
    raise ValueError(
        f"{where}: there are no batches, at least one is needed; the iterable is empty."
    )


def batch_kind(batch: PyTree) -> Any:
    """Return what batches must have in common to share a program: a dictionary key."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((np.shape(x), jnp.result_type(x)) for x in leaves)


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
