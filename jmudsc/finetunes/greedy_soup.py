"""Greedy soup: take up one model after another, as long as it helps."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from jmudsc.finetunes.job import Job
from jmudsc.finetunes.methods import method_of

# What a job ends as.
Done = TypeVar("Done")


def greedy_soup(
    job: Job,
    done: Callable[[Job], Done],
    score: Callable[[Done], float],
    order: str,
) -> tuple[Done, dict[str, Any]]:
    """Average the models that make the average better.

    Start with the best; go through the others from the best to the worst; keep each
    that makes the average of all kept strictly better (Wortsman et al. 2022,
    arXiv:2203.05482, recipe 1).

    Args:
        job: the merge.
        done: does a job.
        score: larger for better ones.
        order: `score`, or `given` to go through the models as they were given.

    Returns:
        What was done, and what to tell of it: the scores of the single models, which
        were kept, and the score of their average.

    Raises:
        ValueError: if a score is not finite.
    """
    models = len(job.models)

    def mean_of(chosen: list[int]) -> Done:
        weights = tuple(float(n in chosen) for n in range(models))
        mean = job.with_method(method_of("linear"))
        return done(mean.with_settings(weight=weights, normalize=True))

    def scored(mean: Done) -> float:
        return finite_score(score(mean))

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
