"""Class split conclusions: what the scores say about the methods, in sentences."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jmudsc.experiments.accuracy import Scores

Run = Mapping[str, Scores]

_FULL = "refit by task"


def conclusions(runs: Sequence[Run]) -> list[str]:
    """Compare the joint accuracies that the method is judged by.

    Differences are of the same run, with the standard error of their mean.

    Args:
        runs: name of a network -> its scores, for each seed the same names.

    Returns:
        One sentence for each comparison whose networks are all there.
    """
    found = [
        _over(runs, f"mudsc-{kind}", f"{space}-{kind}")
        for kind in ("align", "zip")
        for space in ("weight", "activation")
    ]
    for kind in ("align", "zip"):
        found += [
            _over(runs, f"mudsc-{kind} + {_FULL}", other)
            for other in (f"mudsc-{kind}", f"average + {_FULL}", "ensemble")
        ]
    found += [_closed(runs, f"mudsc-{kind}") for kind in ("align", "zip")]
    return [sentence for sentence in found if sentence]


def _joint(runs: Sequence[Run], name: str) -> np.ndarray:
    return np.array([run[name].joint for run in runs])


def _has(runs: Sequence[Run], *names: str) -> bool:
    return all(name in run for run in runs for name in names)


def _over(runs: Sequence[Run], name: str, other: str) -> str | None:
    if not _has(runs, name, other):
        return None
    gain = _joint(runs, name) - _joint(runs, other)
    error = ""
    if len(runs) > 1:
        error = f" ± {gain.std(ddof=1) / math.sqrt(len(runs)):.3f}"
    return f"{name} over {other}: {gain.mean():+.3f}{error}."


def _closed(runs: Sequence[Run], method: str) -> str | None:
    full = f"{method} + {_FULL}"
    if not _has(runs, method, full, "all classes"):
        return None
    gap = (_joint(runs, "all classes") - _joint(runs, method)).mean()
    closed = (_joint(runs, full) - _joint(runs, method)).mean()
    if gap <= 0:
        return None
    return (
        f"{full} closes {closed / gap:.0%} of the gap of {gap:.3f} between {method} "
        "and one network trained on all classes."
    )
