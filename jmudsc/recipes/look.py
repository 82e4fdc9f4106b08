"""Look: what checkpoints hold, and what they have to do with each other."""

import functools
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc.checkpoints.formats import HUGGING_FACE
from jmudsc.checkpoints.load import open_variables, Stored
from jmudsc.finetunes.shared_start import Apart, apart, STRANGE
from jmudsc.lazy import LazyArray
from jmudsc.paths import flatten, plural

# What training code keeps beside the variables, by the last word of its path.
_OF_TRAINING = ("opt_state", "step", "tx", "optimizer", "rng", "epoch", "iteration")
_VARIABLES = ("params", "batch_stats")
# Random states of NNX, which no merge takes.
RANDOM = "*rngs/*"
# What a model without such collections is called in a training state.
_MODELS = ("model", "variables", "weights", "module", "network")
# Leaves that are running statistics, by the last word of their path.
_STATISTICS = ("mean", "var", "moving_mean", "moving_variance", "running_mean")


@dataclass(frozen=True)
class Looked:
    """What one checkpoint holds.

    Attributes:
        path: as it was given.
        stored: its variables, which are not read.
        subtree: the names of the parts that are its variables, or of the one part;
            empty for all of it.
        others: how many leaves it has besides.
        has_random: whether some of these are random states of NNX.
    """

    path: str
    stored: Stored
    subtree: str | tuple[str, ...]
    others: int
    has_random: bool = False

    @functools.cached_property
    def variables(self) -> Mapping[str, LazyArray]:
        """Path of a leaf of its variables -> its lazy array."""
        return flatten(self.stored.variables)

    @property
    def is_hugging_face(self) -> bool:
        """Whether it is the directory of a Hugging Face model."""
        return self.stored.format is HUGGING_FACE

    @property
    def sentence(self) -> str:
        """What it is, in one line."""
        count = sum(leaf.size for leaf in self.variables.values())
        dtypes = dict.fromkeys(leaf.dtype.name for leaf in self.variables.values())
        leaves = plural(len(self.variables), "leaf", "leaves")
        others = plural(self.others, "other leaf", "other leaves")
        left = f", and {others}" if self.others else ""
        told = f"{leaves} of {count:,} entries ({', '.join(dtypes)}){left}"
        return f"{self.stored.format.name}, {told}"

    @property
    def has_statistics(self) -> bool:
        """Whether there are running statistics among its variables."""
        words = [path.replace(".", "/").split("/") for path in self.variables]
        return any(x[-1] in _STATISTICS or "batch_stats" in x for x in words)


@dataclass(frozen=True)
class Related:
    """What two checkpoints have to do with each other.

    Attributes:
        first: the number of one.
        second: the number of the other.
        apart: how far their variables are apart; None where nothing tells.
    """

    first: int
    second: int
    apart: Apart | None

    @property
    def shares_a_start(self) -> bool:
        """Whether they were trained from one network."""
        return self.apart is not None and self.apart.relative <= STRANGE

    @property
    def is_same(self) -> bool:
        """Whether all that was looked at is equal."""
        return self.apart is not None and self.apart.equal == self.apart.leaves


def look(path: str | os.PathLike[str]) -> Looked:
    """Look at a checkpoint, of which no array is read.

    Args:
        path: as for `load`.

    Returns:
        What it holds.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: if what is there is not a whole checkpoint, or is several.
    """
    whole = open_variables(path)
    subtree = _variables_of(whole.variables)
    drawn = any("rngs" in leaf.split("/") for leaf in flatten(whole.variables))
    rename = {RANDOM: None} if drawn else None
    stored = whole
    if subtree or rename:
        stored = open_variables(path, subtree or None, rename=rename)
    others = len(flatten(whole.variables)) - len(flatten(stored.variables))
    return Looked(os.fspath(path), stored, subtree, others, drawn)


def related(models: Sequence[Looked]) -> list[Related]:
    """Say of every two checkpoints how far they are apart.

    Args:
        models: what was looked at; of each a few matrices are read.
    """
    found = []
    for (i, a), (j, b) in itertools.combinations(enumerate(models), 2):
        shared = [n for n, leaf in a.variables.items() if _alike(leaf, b, n)]
        ours = {n: a.variables[n] for n in shared}
        theirs = {n: b.variables[n] for n in shared}
        found.append(Related(i, j, apart(ours, theirs) if shared else None))
    return found


def base_among(models: Sequence[Looked], pairs: Sequence[Related]) -> int | None:
    """Return which of several fine-tunes is what the others were trained from.

    It is nearer to each than any two others are to each other, since what they were
    trained for takes them apart.

    Args:
        models: what was looked at.
        pairs: from `related`.

    Returns:
        Its number; None if there is none, or there are too few to tell.
    """
    far: dict[frozenset[int], float] = {}
    for pair in pairs:
        if not pair.shares_a_start or pair.apart is None:
            return None
        far[frozenset((pair.first, pair.second))] = pair.apart.distance
    numbers = range(len(models))
    for base in numbers if len(models) > 2 else ():
        others = itertools.combinations([n for n in numbers if n != base], 2)
        if all(
            max(far[frozenset((base, i))], far[frozenset((base, j))])
            < far[frozenset((i, j))]
            for i, j in others
        ):
            return base
    return None


def differing(models: Sequence[Looked]) -> tuple[list[str], list[str]]:
    """Say in which leaves checkpoints differ.

    Args:
        models: what was looked at.

    Returns:
        The leaves that are not in all of them, and those of several shapes.
    """
    every = dict.fromkeys(path for model in models for path in model.variables)
    missing, reshaped = [], []
    for path in every:
        leaves = [model.variables.get(path) for model in models]
        if None in leaves:
            missing.append(path)
        elif len({leaf.shape for leaf in leaves if leaf is not None}) > 1:
            reshaped.append(path)
    return missing, reshaped


def _alike(leaf: LazyArray, other: Looked, path: str) -> bool:
    theirs = other.variables.get(path)
    return theirs is not None and np.shape(theirs) == np.shape(leaf)


def _variables_of(tree: PyTree) -> str | tuple[str, ...]:
    """Return the parts of a training state that are variables; nothing for all."""
    keys = list(tree) if isinstance(tree, Mapping) else []
    if not any(str(key) in _OF_TRAINING for key in keys):
        return ()
    holders = (
        [""] if "params" in keys else [x for x in keys if "params" in _keys(tree[x])]
    )
    if len(holders) == 1:
        start = f"{holders[0]}/" if holders[0] else ""
        state = tree[holders[0]] if holders[0] else tree
        return tuple(f"{start}{name}" for name in _VARIABLES if name in state)
    models = [name for name in _MODELS if name in keys]
    return models[0] if len(models) == 1 else ()


def _keys(part: Any) -> Sequence[str]:
    return list(part) if isinstance(part, Mapping) else []
