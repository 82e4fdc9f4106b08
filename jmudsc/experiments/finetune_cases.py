"""Fine-tune cases: what there is to merge by, and merging by it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import PyTree

from jmudsc.experiments import models
from jmudsc.experiments.finetune_config import FineTuneExperiment
from jmudsc.experiments.finetune_setup import accuracy_by_task, TuneSetup
from jmudsc.experiments.finetune_ways import Way, WAYS
from jmudsc.experiments.training import cosines
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.repairs.batch_stats import reset_batch_stats
from jmudsc.types import ApplyFn

# What becomes of running statistics: averaged, pooled, or reset in batches that hold
# images of all tasks, or of one task each.
Statistics = Literal["none", "averaged", "pooled", "reset", "reset by task"]
# For which ways all of these are compared.
COMPARED = ("linear", "task_arithmetic", "tsv")


@dataclass(frozen=True)
class Case:
    """One way to merge, with so much data.

    Attributes:
        way: the method and its options.
        samples: unlabelled images of each task; None for none.
        statistics: what becomes of running statistics, if there are any.
    """

    way: Way
    samples: int | None = None
    statistics: Statistics = "none"

    @property
    def name(self) -> str:
        """What it is called, without the number of images."""
        usual = "pooled" if self.samples is None else "reset"
        is_usual = self.statistics in ("none", usual)
        return self.way.name + ("" if is_usual else f" ({self.statistics})")

    @property
    def key(self) -> str:
        """What it is called in a file."""
        return (
            self.name if self.samples is None else f"{self.name}, {self.samples} images"
        )


def cases_of(experiment: FineTuneExperiment, has_statistics: bool) -> list[Case]:
    """List the cases in the order of the report: none, few and many images."""
    return [
        case
        for samples in (None, *experiment.samples)
        for name in experiment.ways
        for case in _cases(WAYS[name], samples, has_statistics)
    ]


def merged_by(
    case: Case, setup: TuneSetup, base: PyTree, tuned: Sequence[PyTree]
) -> tuple[PyTree, float | None]:
    """Merge fine-tunes, at the scale with the best accuracy on training images.

    Args:
        case: how, and with how many images.
        setup: the images.
        base: the base.
        tuned: the fine-tunes.

    Returns:
        The variables, and the scale; None if there is none to choose.
    """
    experiment, way = setup.experiment, case.way
    embed = models.apply_fn(experiment.network)

    def score(variables: PyTree) -> float:
        mended = _reset(case, setup, variables)
        return float(
            np.mean(accuracy_by_task(embed, mended, setup.search, setup.vectors))
        )

    # Without images the first few only show which axes of a leaf go in.
    batches = [images[: case.samples or 2] for images in setup.inputs]
    options: dict[str, Any] = dict(way.options)
    options |= {"score": score} if way.is_scaled or way.method == "greedy_soup" else {}
    if way.is_scaled:
        options |= {"lambda_": "search", "lambdas": experiment.lambdas}
    if case.samples is not None and not way.mends and way.needs_images:
        options["samples"] = case.samples
    if case.statistics == "pooled":
        options["repair"] = "pooled"
    elif case.statistics == "reset by task":
        options["update_fn"] = models.update_fn(experiment.network)
    needs_logits = way.method == "fisher"
    result = merge_finetunes(
        tuned,
        base,
        way.method,
        apply_fn=_logits_fn(setup) if needs_logits else embed,
        batches=batches,
        owners=range(len(batches)),
        key=setup.keys["merge"],
        check=False,  # the base is the right one
        **options,
    )
    scale = result.recipe["lambda_"] if way.is_scaled else None
    return _reset(case, setup, result.variables), scale


def _cases(way: Way, samples: int | None, has_statistics: bool) -> Iterator[Case]:
    if samples is None and way.needs_images:
        return
    if has_statistics:
        yield Case(way, samples, "pooled" if samples is None else "reset")
        if way.name in COMPARED:
            yield Case(way, samples, "averaged" if samples is None else "reset by task")
    elif samples is None or way.needs_images:
        yield Case(way, samples)


def _reset(case: Case, setup: TuneSetup, variables: PyTree) -> PyTree:
    """Reset running statistics in batches that hold images of all tasks."""
    if case.statistics != "reset":
        return variables
    mixed = np.stack([images[: case.samples] for images in setup.inputs], axis=1)
    mixed = mixed.reshape(-1, *mixed.shape[2:])
    update = models.update_fn(setup.experiment.network)
    batches = np.array_split(mixed, max(1, len(mixed) // 256))
    return reset_batch_stats(update, variables, batches)


def _logits_fn(setup: TuneSetup) -> ApplyFn:
    """Return `(variables, images) -> logits` over all classes."""
    embed = models.apply_fn(setup.experiment.network)
    scale = setup.experiment.training.logit_scale
    return lambda v, images: scale * cosines(embed(v, images), setup.vectors)
