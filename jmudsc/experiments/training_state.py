"""Training state: kept on disk, so that a training that was stopped can go on.

There is one checkpoint at a time, named by the epochs done. The next is complete before
it is removed, so that a process killed at any moment leaves a whole one.
"""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.load import load
from jmudsc.checkpoints.save import save_variables

State = TypeVar("State")

_STATES = 20  # how often, in a training, its state is kept


@dataclass(frozen=True)
class Keeping:
    """Where the state of a training is kept.

    Attributes:
        folder: of this training alone; made if it is not there.
        every: after how many epochs the state is kept.
    """

    folder: Path
    every: int = 1


def trained_once(path: Path, epochs: int, train: Callable[[Keeping], PyTree]) -> PyTree:
    """Load what was trained before; if nothing was, train and save it.

    Args:
        path: of the checkpoint.
        epochs: of the whole training.
        train: trains, and keeps the state where it is told.

    Returns:
        The variables.
    """
    if path.exists():
        return load(path)
    folder = path.with_name(f"training-{path.name}")
    variables = train(Keeping(folder, every=-(-epochs // _STATES)))
    save_variables(path, variables)
    shutil.rmtree(folder)
    return variables


def keep_state(folder: Path, epoch: int, state: Any, decided_by: str) -> None:
    """Save the state of a training, and remove what was saved before.

    Args:
        folder: of this training alone; made if it is not there.
        epoch: how many epochs are done.
        state: any pytree of arrays.
        decided_by: everything that decides the training, as text.
    """
    earlier = _epochs(folder)
    leaves = {f"{i:05}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    save_variables(_at(folder, epoch), {"leaves": leaves, "of": _digest(decided_by)})
    for number in earlier:
        shutil.rmtree(_at(folder, number))


def last_state(folder: Path, start: State, decided_by: str) -> tuple[int, State]:
    """Load the state of a training that was stopped.

    Args:
        folder: of this training alone.
        start: the state it began with.
        decided_by: everything that decides the training, as text.

    Returns:
        How many epochs are done, and the state; 0 and `start` if none was saved.

    Raises:
        ValueError: if the state saved is of another training.
    """
    epochs = _epochs(folder)
    if not epochs:
        return 0, start
    kept = load(_at(folder, epochs[-1]))
    if not np.array_equal(kept["of"], _digest(decided_by)):
        raise ValueError(
            f"{folder}: expected the state of a training with the same model, config, "
            "key and data, got that of another. Remove it or choose another folder."
        )
    leaves = [kept["leaves"][name] for name in sorted(kept["leaves"])]
    return epochs[-1], jax.tree.unflatten(jax.tree.structure(start), leaves)


def _at(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:05}"


def _epochs(folder: Path) -> list[int]:
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = [re.fullmatch(r"epoch-(\d+)", name) for name in names]
    return sorted(int(match[1]) for match in found if match)


def _digest(text: str) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
