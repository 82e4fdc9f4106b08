"""Balance: choose alpha, the share of the weight similarity, by trying values of it.

The paper keeps the alpha of the best accuracy on training data (Xu et al. 2024,
arXiv:2403.01753, section 4.1). The statistics of a merge do not depend on alpha, so
each value costs a matching and a score.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from jmudsc.matching.methods import Method, names_of

Candidate = TypeVar("Candidate")

ALPHAS = tuple(tenth / 10 for tenth in range(11))
CHOICES = ("search", "auto")


@dataclass(frozen=True)
class Best(Generic[Candidate]):
    """What a search found.

    Attributes:
        candidate: the best.
        alpha: its balance.
        scores: every balance tried and its score.
    """

    candidate: Candidate
    alpha: float
    scores: tuple[tuple[float, float], ...]


def search_alpha(
    candidate_at: Callable[[float], Candidate],
    score: Callable[[Candidate], float],
    alphas: Iterable[float] = ALPHAS,
) -> Best[Candidate]:
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
                f"score: is {reached} at alpha {alpha:g}, it must be finite; return a "
                "number that is larger for better variables."
            )
        scores.append((alpha, reached))
        rank = reached, -abs(alpha - 0.5)
        if best is None or rank > best[0]:
            best = rank, alpha, candidate
    assert best is not None
    return Best(best[2], best[1], tuple(scores))


def check_balance(
    where: str, alpha: object, alphas: Sequence[float], method: Method, scored: bool
) -> None:
    """Check that a balance that is to be searched for can be.

    Args:
        where: the caller, named in the error.
        alpha: a number, or one of `CHOICES`.
        alphas: the values to try.
        method: the method.
        scored: whether there is a score.

    Raises:
        ValueError: if the choice is unknown, the method has no balance, there is no
            score to search by or one that is not used, or no value to try.
    """
    if scored and alpha != "search":
        raise ValueError(
            f"{where}: score is given and alpha is {alpha!r}, it would not be used; "
            'pass alpha="search".'
        )
    if not isinstance(alpha, str):
        return
    if alpha not in CHOICES:
        raise ValueError(
            f'{where}: alpha is "{alpha}", it must be a number in [0, 1], "search" or '
            '"auto".'
        )
    if not method.blends:
        others = names_of(lambda row: row.blends)
        raise ValueError(
            f'{where}: alpha is "{alpha}", but {method.name} has no balance to choose. '
            f"Use {others}, or leave alpha out."
        )
    if alpha == "search" and not scored:
        raise ValueError(
            f'{where}: alpha="search" needs score, a function of variables that is '
            'larger for better ones; alpha="auto" needs none.'
        )
    if not alphas or not all(0 <= value <= 1 for value in alphas):
        raise ValueError(
            f"{where}: alphas are {list(alphas)}, needed is at least one number in "
            "[0, 1]."
        )
