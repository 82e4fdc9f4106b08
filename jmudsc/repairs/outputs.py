"""Outputs: what a network makes of some batches, row by row, on the host."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from jmudsc.batches import checked
from jmudsc.sharding import to_host

# How many values are kept of one batch, and of all, for each output of a network.
_OF_A_BATCH = 2**22
_OF_ALL = 2**25


@dataclass(frozen=True)
class Outputs:
    """The outputs of one network, those that have an axis of samples in front.

    Attributes:
        leaves: per output its rows: the last axis, for every place of every sample.
        samples: per output the number of the sample that each row is of.
        batches: the number of the batch that each sample is from.
    """

    leaves: tuple[Float[np.ndarray, "_ _"], ...]
    samples: tuple[Int[np.ndarray, " _"], ...]
    batches: Int[np.ndarray, " samples"]

    @property
    def count(self) -> int:
        """Number of samples."""
        return len(self.batches)


def outputs_of(
    apply_fn: Callable[[PyTree, PyTree], PyTree],
    variables: PyTree,
    batches: Iterable[PyTree],
    most: int | None = _OF_ALL,
    where: str = "merge",
) -> Outputs | None:
    """Run a network over batches, and keep its outputs.

    Of outputs that are large, such as logits of a vocabulary at every place of a text,
    only some places are kept, evenly spaced.

    Args:
        apply_fn: `(variables, batch) -> outputs`.
        variables: of the network.
        batches: what the function takes.
        most: after this many values of an output the other batches are left out; None
            for no limit.
        where: the caller, named in errors.

    Returns:
        The outputs; None if none of them is made of floating-point numbers with the
        axis of the samples in front, or they have another shape in every batch.
    """
    compiled, found, numbers = jax.jit(apply_fn), [], []
    kept = 0
    for number, batch in enumerate(checked(where, batches)):
        leaves = _rows(compiled(variables, batch), batch)
        if not leaves:
            return None
        found.append(leaves)
        numbers += [number] * len(leaves[0])
        kept += max(leaf.size for leaf in leaves)
        if most is not None and kept >= most:
            break
    return _joined(found, np.asarray(numbers, np.int64))


def _joined(
    found: Sequence[Sequence[np.ndarray]], numbers: Int[np.ndarray, " samples"]
) -> Outputs | None:
    """Join the outputs of several batches, of (samples, places, entries) each."""
    kinds = {tuple(leaf.shape[-1] for leaf in leaves) for leaves in found}
    counts = {len(leaf) for leaves in found[:1] for leaf in leaves}
    if len(kinds) != 1 or len(counts) != 1:
        return None
    starts = np.cumsum([0, *(len(leaves[0]) for leaves in found)])
    joined, samples = [], []
    for parts in zip(*found, strict=True):
        joined.append(np.concatenate([x.reshape(-1, x.shape[-1]) for x in parts]))
        samples.append(
            np.concatenate(
                [
                    np.repeat(np.arange(len(x)) + start, x.shape[1])
                    for x, start in zip(parts, starts, strict=False)
                ]
            )
        )
    return Outputs(tuple(joined), tuple(samples), numbers)


def _rows(outputs: PyTree, batch: PyTree) -> list[Float[np.ndarray, "_ _ _"]]:
    counts = {np.shape(x)[0] for x in jax.tree.leaves(batch) if np.shape(x)} - {0}
    leaves = [x for x in jax.tree.leaves(outputs) if _runs_over(x, counts)]
    return [_places(to_host(leaf)) for leaf in leaves]


def _runs_over(output: Any, counts: set[int]) -> bool:
    """Whether an output is of real numbers, with an axis of samples in front."""
    is_real = output.dtype.kind == "f" or output.dtype.name == "bfloat16"
    return is_real and bool(output.shape) and output.shape[0] in counts


def _places(array: np.ndarray) -> Float[np.ndarray, "_ _ _"]:
    """Lay an output out as samples, places and entries; leave places out of many."""
    samples, *rest = array.shape
    entries = rest[-1] if rest else 1
    rows = array.reshape(samples, -1, entries) if array.size else array[:, None, None]
    step = -(-rows.size // _OF_A_BATCH)
    return rows[:, :: max(step, 1)].astype(np.float32)
