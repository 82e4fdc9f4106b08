"""Lambda: the scale of what is added to the base, given or searched for."""

from collections.abc import Callable, Sequence
from typing import Any

from jmudsc.finetunes.greedy_soup import Done, finite_score
from jmudsc.finetunes.option import Number


def lambda_problems(
    lambda_: Any, scored: bool, lambdas: Sequence[float | int]
) -> list[str]:
    """Return what is wrong with a scale that is to be searched for.

    Args:
        lambda_: the scale, `auto` or `search`.
        scored: whether there is a score.
        lambdas: the scales to try.
    """
    found = []
    if isinstance(lambda_, str) and lambda_ not in ("auto", "search"):
        found.append(f'lambda_: expected a number, "auto" or "search", got "{lambda_}"')
    if lambda_ == "search" and not scored:
        found.append(
            'score: expected a function of variables for lambda_="search", got None'
        )
    kind = Number()
    if not list(lambdas) or not all(map(kind.holds, lambdas)):
        found.append(f"lambdas: expected one or more numbers, got {list(lambdas)}")
    return found


def search_lambda(
    done_at: Callable[[float], Done],
    score: Callable[[Done], float],
    lambdas: Sequence[float | int],
) -> tuple[Done, dict[str, Any]]:
    """Try scales and keep the best.

    Args:
        done_at: merges at a scale.
        score: larger for better ones.
        lambdas: the scales.

    Returns:
        The one with the largest score, of several that of the least scale; and
        what to tell of it: the scale and the scores.

    Raises:
        ValueError: if a score is not finite.
    """
    best, scores = None, {}
    for scale in sorted(set(map(float, lambdas))):
        done = done_at(scale)
        reached = finite_score(score(done))
        scores[f"{scale:g}"] = reached
        if best is None or reached > best[0]:
            best = reached, scale, done
    assert best is not None
    return best[2], {"lambda_": best[1], "scores": scores}
