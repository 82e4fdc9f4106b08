"""Fine-tune conclusions: what the accuracies say about the methods, in sentences."""

import math
from collections.abc import Sequence

import numpy as np

from jmudsc.experiments.finetune_accuracies import Run, TUNED


def conclusions(samples: Sequence[int], runs: Sequence[Run]) -> list[str]:
    """Compare the mean accuracies that the methods are judged by.

    Differences are of the same run, with the standard error of their mean.

    Args:
        samples: how many images of each task methods had.
        runs: name of a network -> its accuracies, for each seed the same names.

    Returns:
        One sentence for each comparison whose networks are all there.
    """
    found = [_without_data(runs)]
    for count in samples:
        for method in ("lot", "featcal", "regmean_pp"):
            found.append(
                _over(runs, f"{method}, {count} images", f"regmean, {count} images")
            )
    found.append(_closed(runs))
    for way in ("linear", "task_arithmetic", "tsv"):
        found.append(_over(runs, way, f"{way} (averaged)"))
        for count in samples:
            reset = f"{way}, {count} images"
            found.append(_over(runs, reset, way))
            found.append(_over(runs, reset, f"{way} (reset by task), {count} images"))
    return [sentence for sentence in found if sentence]


def _without_data(runs: Sequence[Run]) -> str | None:
    """Name the methods without data that are better than the plain average."""
    if "linear" not in runs[0] or len(runs) < 2:
        return None
    ahead = []
    for name, entry in runs[0].items():
        if entry.way and entry.samples is None and name != "linear":
            gain, error = _gain(runs, name, "linear")
            if gain > 2 * error:
                ahead.append(f"{name} ({gain:+.3f} ± {error:.3f})")
    if not ahead:
        return "No method without data is ahead of linear by two standard errors."
    return f"Ahead of linear by more than two standard errors: {', '.join(ahead)}."


def _closed(runs: Sequence[Run]) -> str | None:
    if "linear" not in runs[0]:
        return None
    merged = [name for name, entry in runs[0].items() if entry.way]
    mean = lambda name: float(np.mean([run[name].mean for run in runs]))
    best = max(merged, key=mean)
    low, high = mean("linear"), mean(TUNED)
    if high <= low:
        return None
    return (
        f"{best} closes {(mean(best) - low) / (high - low):.0%} of the gap of "
        f"{high - low:.3f} between linear and the single fine-tunes."
    )


def _over(runs: Sequence[Run], name: str, other: str) -> str | None:
    if not all(each in runs[0] for each in (name, other)):
        return None
    gain, error = _gain(runs, name, other)
    spread = f" ± {error:.3f}" if len(runs) > 1 else ""
    return f"{name} over {other}: {gain:+.3f}{spread}."


def _gain(runs: Sequence[Run], name: str, other: str) -> tuple[float, float]:
    """Return the mean difference and its standard error."""
    gains = np.array([run[name].mean - run[other].mean for run in runs])
    error = gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
    return float(gains.mean()), float(error)
