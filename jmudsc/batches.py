"""Batches: what calibration data must be, and whose task they are from."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import PyTree

from jmudsc import paths


def check_iterable(where: str, batches: Any) -> None:
    """Check that batches are several things, and not one batch.

    Args:
        where: the caller, named in the error.
        batches: the calibration batches.

    Raises:
        TypeError: if they are no iterable, or an array or a mapping: a batch.
    """
    kind = f"an object of type {type(batches).__name__}"
    if hasattr(batches, "shape") and hasattr(batches, "dtype"):
        kind = f"a single array, {batches.dtype}{list(batches.shape)}"
    elif isinstance(batches, Iterable) and not isinstance(batches, Mapping):
        return
    raise TypeError(
        f"{where}: expected an iterable of batches, got {kind}. Pass [x] for a single "
        "batch, list(x) for several that are stacked."
    )


def checked(where: str, batches: Iterable[PyTree]) -> Iterator[PyTree]:
    """Yield batches, each once it is known that something can be computed on it.

    Args:
        where: the caller, named in the error.
        batches: the calibration batches.

    Raises:
        ValueError: if an array of a batch was deleted, or a batch has no samples.
    """
    for number, batch in enumerate(batches):
        check_batch(where, batch, number)
        yield batch


def check_batch(where: str, batch: PyTree, number: int = 0) -> None:
    """Check that something can be computed on a batch.

    Args:
        where: the caller, named in the error.
        batch: the batch.
        number: which of all batches it is.

    Raises:
        ValueError: if an array of it was deleted, or it has no samples.
    """
    check_there(f"{where}: batch {number}", batch)
    kinds = [
        f"{jnp.result_type(leaf)}{list(np.shape(leaf))}"
        for leaf in jax.tree.leaves(batch)
        if hasattr(leaf, "dtype")
    ]
    if not any(np.size(leaf) for leaf in jax.tree.leaves(batch)):
        raise ValueError(
            f"{where}: batch {number}: expected at least one sample, got "
            f"{', '.join(kinds) or 'no array'}. Leave out batches without samples."
        )


def check_there(name: str, tree: PyTree) -> None:
    """Check that no array of a tree was deleted.

    Args:
        name: what the tree is, named in the error.
        tree: any pytree.

    Raises:
        ValueError: listing every leaf that was.
    """
    gone = [
        path or "the array"
        for path, leaf in paths.flatten(tree).items()
        if isinstance(leaf, jax.Array)
        and not isinstance(leaf, Tracer)
        and leaf.is_deleted()
    ]
    if gone:
        raise ValueError(
            f"{name}: expected arrays that are there, got deleted ones, as a function "
            f"that takes donated arguments leaves them:\n{paths.listed(gone)}\nPass a "
            "copy made before, or load it again."
        )


def no_batches(where: str) -> ValueError:
    """Return the error of a pass over batches that came to none.

    Args:
        where: the caller, named in the error.
    """
    return ValueError(
        f"{where}: expected at least one batch, got none. Pass a list of batches; an "
        "iterator may have been read before."
    )


def first_batch(where: str, batches: Iterable[PyTree]) -> PyTree:
    """Return the first of some batches.

    Args:
        where: the caller, named in the error.
        batches: a re-iterable.

    Raises:
        ValueError: if there are none, or nothing can be computed on it.
    """
    for batch in checked(where, batches):
        return batch
    raise ValueError(
        f"{where}: expected at least one batch, got an empty iterable. Pass a list of "
        "batches."
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
