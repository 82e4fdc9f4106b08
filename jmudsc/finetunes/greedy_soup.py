"""Greedy soup: take up one model after another, as long as it helps."""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import PyTree

from jmudsc.finetunes.job import Job
from jmudsc.finetunes.methods import method_of


def greedy_soup(
    job: Job,
    variables_of: Callable[[Job], PyTree],
    score: Callable[[PyTree], float],
    order: str,
) -> tuple[PyTree, dict]:
    """Average the models that make the average better.

    Start with the best; go through the others from the best to the worst; keep each
    that makes the average of all kept strictly better (Wortsman et al. 2022,
    arXiv:2203.05482, recipe 1).

    Args:
        job: the merge.
        variables_of: does a job.
        score: larger for better variables.
        order: `score`, or `given` to go through the models as they were given.

    Returns:
        The variables, and what to tell of it: the scores of the single models, which
        were kept, and the score of their average.

    Raises:
        ValueError: if a score is not finite.
    """
    models = len(job.models)

    def mean_of(chosen: list[int]) -> PyTree:
        weights = tuple(float(n in chosen) for n in range(models))
        mean = job.with_method(method_of("linear"))
        return variables_of(mean.with_settings(weight=weights, normalize=True))

    def scored(variables: PyTree) -> float:
        return finite_score(score(variables))

    scores = [scored(mean_of([n])) for n in range(models)]
    ranked = list(range(models))
    if order == "score":
        ranked = sorted(ranked, key=lambda n: (-scores[n], n))
    kept, best = [ranked[0]], scores[ranked[0]]
    for model in ranked[1:]:
        reached = scored(mean_of([*kept, model]))
        if reached > best:
            kept, best = [*kept, model], reached
    told = {"scores": scores, "kept": sorted(kept), "score": best}
    return mean_of(kept), told


def finite_score(score: float) -> float:
    """Return a score as a number.

    Args:
        score: what a user's function returned.

    Raises:
        ValueError: if it is not finite.
    """
    value = float(np.asarray(score))
    if not math.isfinite(value):
        raise ValueError(
            f"score: expected a finite number, got {value}. Return a number that is "
            "larger for better variables."
        )
    return value
