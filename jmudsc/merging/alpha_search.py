"""Alpha search: choose the share of the weight similarity by trying values of it.

The paper keeps the alpha of the best accuracy on training data (Xu et al. 2024,
arXiv:2403.01753, section 4.1). The statistics of a merge do not depend on alpha, so
each value costs a matching and a score. Where nobody has a score, the agreement of a
merged network with its parents, which takes no labels, is one.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
import numpy as np
from jaxtyping import Float, PyTree

from jmudsc.batches import checked
from jmudsc.types import ApplyFn

Tried = TypeVar("Tried")
Outputs = Float[np.ndarray, "samples outputs"]

ALPHAS = tuple(tenth / 10 for tenth in range(11))
CHOICES = ("search", "auto")


@dataclass(frozen=True)
class Best(Generic[Tried]):
    """What a search found.

    Attributes:
        candidate: the best.
        alpha: its balance.
        scores: every balance tried and its score.
    """

    candidate: Tried
    alpha: float
    scores: tuple[tuple[float, float], ...]


def search_alpha(
    candidate_at: Callable[[float], Tried],
    score: Callable[[Tried], float],
    alphas: Iterable[float] = ALPHAS,
) -> Best[Tried]:
    """Try values of alpha and keep the best.

    Args:
        candidate_at: makes what is scored, given a balance.
        score: larger is better.
        alphas: the balances to try, in [0, 1].

    Returns:
        The candidate with the largest score; of several, that whose balance is nearest
        to 0.5, and of two such the smaller.

    Raises:
        ValueError: if a score is not finite.
    """
    best, scores = None, []
    for alpha in sorted(alphas):
        candidate = candidate_at(alpha)
        reached = float(score(candidate))
        if not math.isfinite(reached):
            raise ValueError(
                f"score: expected a finite number, got {reached} at alpha {alpha:g}. "
                "Return a number that is larger for better variables."
            )
        scores.append((alpha, reached))
        rank = reached, -abs(alpha - 0.5)
        if best is None or rank > best[0]:
            best = rank, alpha, candidate
    assert best is not None
    return Best(best[2], best[1], tuple(scores))


def agreement_with(
    apply_fns: Sequence[ApplyFn], models: Sequence[PyTree], batches: Iterable[PyTree]
) -> Callable[[Sequence[PyTree]], float]:
    """Run the parents over batches and return what compares merged networks with them.

    The outputs of all batches are kept.

    Args:
        apply_fns: one per model, `(variables, batch) -> outputs`; the leading axis of
            every output runs over samples.
        models: the variables of the parents.
        batches: of all tasks, a re-iterable.

    Returns:
        A function of the merged networks: of one network that stands for all parents,
        `joint_agreement`; of one per parent, the mean of `own_agreement`.
    """
    compiled = [jax.jit(apply_fn) for apply_fn in dict.fromkeys(apply_fns)]
    which = [list(dict.fromkeys(apply_fns)).index(apply_fn) for apply_fn in apply_fns]

    def outputs_of(networks: Sequence[PyTree]) -> list[Outputs]:
        pairs = zip(which, networks, strict=False)
        return [_outputs(compiled[i], network, batches) for i, network in pairs]

    parents = outputs_of(models)

    def agreement(networks: Sequence[PyTree]) -> float:
        found = outputs_of(networks)
        if len(found) == 1:
            return joint_agreement(found[0], parents)
        own = map(own_agreement, found, parents)
        return float(np.mean(list(own)))

    return agreement


def joint_agreement(merged: Outputs, parents: Sequence[Outputs]) -> float:
    """Compare the outputs of one network with those of the parents it stands for.

    No parent knows all tasks, so on each sample the surest counts: the one whose output
    is farthest from its own mean, relative to its spread. Two parts are averaged: the
    mean cosine with the surest parent, and the share of samples on which the network is
    nearer to the surest parent than to any other. All outputs are centred first. Chosen
    by measurement, see docs/method.md.

    Args:
        merged: outputs of the network.
        parents: outputs of each parent on the same samples.

    Returns:
        The agreement, at most 1.
    """
    cosines = np.stack([_cosines(merged, parent) for parent in parents])
    surest = np.stack([_sureness(parent) for parent in parents]).argmax(axis=0)
    with_surest = cosines[surest, np.arange(len(surest))]
    nearest = (cosines.argmax(axis=0) == surest).mean()
    return float((with_surest.mean() + nearest) / 2)


def own_agreement(merged: Outputs, parent: Outputs) -> float:
    """Compare the outputs of a network with those of the one parent it stands for.

    Args:
        merged: outputs of the network.
        parent: outputs of the parent on the same samples.

    Returns:
        The mean cosine of centred outputs, in [-1, 1].
    """
    return float(_cosines(merged, parent).mean())


def _cosines(a: Outputs, b: Outputs) -> Float[np.ndarray, " samples"]:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return (a * b).sum(axis=1) / np.where(norms > 0, norms, 1)


def _sureness(outputs: Outputs) -> Float[np.ndarray, " samples"]:
    squares = ((outputs - outputs.mean(axis=0)) ** 2).sum(axis=1)
    return squares / (squares.mean() or 1)


def _outputs(
    apply_fn: Callable[[PyTree, PyTree], PyTree],
    variables: PyTree,
    batches: Iterable[PyTree],
) -> Outputs:
    rows = []
    for batch in checked("merge", batches):
        leaves = jax.device_get(jax.tree.leaves(apply_fn(variables, batch)))
        if not all(np.shape(x) for x in leaves):
            raise ValueError(
                'merge: alpha: expected outputs with an axis of samples for "auto", '
                "got a single number. Return the outputs of the network, not a loss, "
                "or pass a number for alpha."
            )
        flat = [np.asarray(x, np.float64).reshape(np.shape(x)[0], -1) for x in leaves]
        rows.append(np.concatenate(flat, axis=1))
    return np.concatenate(rows)
