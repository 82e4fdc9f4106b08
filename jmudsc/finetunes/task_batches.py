"""Task batches: the unlabelled inputs of each model's task, so many of them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.batches import Chained, check_iterable


@dataclass(frozen=True)
class TaskBatches:
    """Batches, and the model of whose task each is.

    Attributes:
        batches: a re-iterable.
        owners: for each batch the number of a model; None if every batch is of all.
    """

    batches: Iterable[PyTree]
    owners: tuple[int, ...] | None = None

    def of(self, model: int, samples: int) -> Iterator[PyTree]:
        """Yield batches of a model's task with so many examples together, or fewer.

        Args:
            model: its number.
            samples: the most examples; the leading axis of the first leaf counts them.
        """
        left = samples
        for number, batch in enumerate(self.batches):
            if self.owners is not None and self.owners[number] != model:
                continue
            if left <= 0:
                return
            size = examples_in(batch)
            yield batch if size <= left else _first(batch, left)
            left -= size


def examples_in(batch: PyTree) -> int:
    """Return the number of examples of a batch."""
    return int(np.shape(jax.tree.leaves(batch)[0])[0])


def task_batches(
    where: str,
    batches: Iterable[PyTree] | None,
    owners: Sequence[int] | None,
    models: int,
) -> TaskBatches | None:
    """Say of whose task every batch is.

    Args:
        where: the caller, named in errors.
        batches: what a user gave; an iterator is read into a list.
        owners: for each batch the number of a model; None for all, or for those of
            `Chained` tasks, if there are as many as models.
        models: the number of models.

    Returns:
        The batches; None if there are none.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch.
        ValueError: if the owners are no models, one owns no batch, or there are more or
            fewer owners than batches.
    """
    if batches is None:
        if owners is not None:
            raise ValueError(
                f"{where}: expected batches to go with owners, got None. Pass batches."
            )
        return None
    check_iterable(where, batches)
    if isinstance(batches, Iterator):
        batches = list(batches)
    if owners is None and isinstance(batches, Chained) and len(batches.tasks) == models:
        owners = batches.owners()
    if owners is None:
        return TaskBatches(batches)
    count = sum(1 for _ in batches)
    if len(owners) != count or set(owners) != set(range(models)):
        raise ValueError(
            f"{where}: expected owners to give for each of {count} batches the number "
            f"of a model, each of 0 to {models - 1} at least once, got {list(owners)}. "
            "Pass the number of the model of whose task the batch is."
        )
    return TaskBatches(batches, tuple(owners))


def _first(batch: PyTree, examples: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[:examples], batch)
