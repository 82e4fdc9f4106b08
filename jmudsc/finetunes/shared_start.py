"""Shared start: were models trained from one base, and is a base the one they had?

Measured on an MLP and a CNN of 8 x 8 digits (docs/finetunes.md): the median over
matrices of how far two models are apart, relative to their size, is 1.4 for models
trained from different initialisations, as for random directions, and 0.01 to 0.7 for
models trained from one base.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.lazy import LazyArray, present
from jmudsc.sharding import to_host

# Farther than this are networks that do not share a start.
STRANGE = 1.2
# How much farther than from each other models may be from their base.
FARTHER = 2.0
# So many matrices are looked at, so many entries of all, and of each at most.
_MOST_LEAVES, _MOST_ENTRIES, MOST_OF_EACH = 16, 2**24, 2**20


@dataclass(frozen=True)
class Apart:
    """How far two trees are apart, by some of their matrices.

    Attributes:
        relative: the median over matrices of the distance, relative to the mean size.
        distance: over all of them together.
        equal: how many are equal.
        leaves: how many there are.
    """

    relative: float
    distance: float
    equal: int
    leaves: int


def apart(first: PyTree, second: PyTree) -> Apart | None:
    """Measure how far two trees are apart.

    Args:
        first: arrays, on disk or not; of those on disk a few matrices are read.
        second: of the same leaves.

    Returns:
        How far; None if there are no matrices of floating-point numbers.
    """
    ours, theirs = paths.flatten(first), paths.flatten(second)
    relatives, squares = [], 0.0
    for path in looked_at(ours):
        a, b = _array(ours[path]), _array(theirs[path])
        distance = float(np.linalg.norm(a - b))
        size = (float(np.linalg.norm(a)) + float(np.linalg.norm(b))) / 2
        relatives.append(distance / size if size else 0.0)
        squares += distance**2
    if not relatives:
        return None
    equal = sum(relative == 0 for relative in relatives)
    median = float(np.median(relatives))
    return Apart(median, squares**0.5, equal, len(relatives))


def strangers_hint(where: str, models: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what to tell a user whose models do not share a start.

    Args:
        where: the caller.
        models: the leaves of each model.

    Returns:
        A sentence; None if two of the models look so, or there is one only.
    """
    found = [apart(a, b) for a, b in itertools.combinations(models, 2)]
    nearest = min((pair.relative for pair in found if pair), default=0.0)
    if nearest <= STRANGE:
        return None
    return (
        f"{where}: the models are as far from each other as networks that were trained "
        f"apart (median relative distance {nearest:.2g}): their units are in different "
        "orders. Use jmudsc.merge, which matches them first."
    )


def wrong_base_hint(
    where: str, models: Sequence[Mapping[str, Any]], base: Mapping[str, Any]
) -> str | None:
    """Return what to tell a user whose base is probably not that of the models.

    Args:
        where: the caller.
        models: the leaves of each model.
        base: those of the base.

    Returns:
        A sentence; None if the base looks right.
    """
    known = [each for each in (apart(model, base) for model in models) if each]
    if not known:
        return None
    nearest = min(known, key=lambda each: each.distance)
    advice = "Pass the variables that the models were trained from."
    if nearest.relative > STRANGE:
        return (
            f"{where}: the base is as far from every model as one that was trained "
            f"apart (median relative distance {nearest.relative:.2g}): it is probably "
            f"a wrong one. {advice}"
        )
    pairs = [apart(a, b) for a, b in itertools.combinations(models, 2)]
    between = max((pair.distance for pair in pairs if pair), default=0.0)
    if between > 0 and nearest.distance > FARTHER * between:
        return (
            f"{where}: the base is {nearest.distance / between:.2g} times as far from "
            "the models as they are from each other: it may be a wrong one, unless "
            f"they were trained for one task. {advice}"
        )
    return None


def looked_at(leaves: Mapping[str, Any]) -> list[str]:
    """Choose matrices from all over a tree, so many that reading them takes no time."""
    matrices = [
        path
        for path, leaf in leaves.items()
        if np.ndim(leaf) >= 2 and np.dtype(leaf.dtype).kind not in "iub"
    ]
    step = max(1, len(matrices) // _MOST_LEAVES)
    chosen, entries = [], 0
    for path in matrices[::step]:
        entries += min(int(np.prod(np.shape(leaves[path]))), MOST_OF_EACH)
        if chosen and entries > _MOST_ENTRIES:
            break
        chosen.append(path)
    return chosen


def _array(leaf: Any) -> np.ndarray:
    """Return the first entries of a leaf, no more than tell how far two are apart."""
    if isinstance(leaf, LazyArray) and leaf.part is not None:
        host = leaf.part(0, min(leaf.size, MOST_OF_EACH))
    else:
        host = np.asarray(to_host(present(leaf))).reshape(-1)[:MOST_OF_EACH]
    return host.astype(np.complex128 if np.iscomplexobj(host) else np.float64)
