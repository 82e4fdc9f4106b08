"""Report: what a merge did, as tables in Markdown."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jmudsc.matching.methods import TABLE
from jmudsc.merging.result import MergeResult
from jmudsc.merging.verdict import advice_of, Verdict
from jmudsc.paths import plural
from jmudsc.tables import table


def report(result: MergeResult) -> str:
    """Describe a merge: what decided it, how matching went, and what became of units.

    Args:
        result: the merge.

    Returns:
        Markdown.
    """
    lines = judgement(result)
    lines += ["# Merge", ""]
    lines += [f"- {key}: {_plain(value)}" for key, value in _decisive(result.recipe)]
    labels, leaves = result.spec.labels, result.spec.axes
    labelled = {site.path for label in labels.values() for site in label.sites}
    all_leaves = plural(len(leaves), "leaf", "leaves")
    if labels:
        lines += [f"- labels: {len(labels)} on {len(labelled)} of {all_leaves}"]
    else:
        lines += [f"- leaves: {len(leaves)}, of which no unit was moved"]
    fixed = {n: label.fixed for n, label in result.spec.labels.items() if label.fixed}
    lines += [f"- label {name} stays in place: {why}" for name, why in fixed.items()]
    if result.history:
        best = int(np.argmax(result.history))
        lines += [
            f"- sweeps: {len(result.history)}, the best was sweep {best + 1} with mean "
            f"similarity {result.history[best]:.4f}"
        ]
    if result.refit_reach:
        lines += [f"- {result.refit_reach}"]
    if result.seconds:
        seconds = {stage: round(taken, 2) for stage, taken in result.seconds.items()}
        lines += [f"- seconds: {_plain(seconds)}"]
    if result.verdict:
        lines += ["", *verdict_lines(result.verdict)]
    if result.comparison:
        lines += ["", "## What was tried", "", *str(result.comparison).splitlines()]
    if labels:
        lines += ["", *_labels(result)]
    if result.changes:
        lines += ["", *_changes(result)]
    return "\n".join(lines) + "\n"


def verdict_lines(verdict: Verdict) -> list[str]:
    """Describe how a merged network compares with what went into it.

    Args:
        verdict: of the merge.

    Returns:
        Lines of Markdown: the sentence, and a table with a row for each network.
    """
    known = {name: each for name, each in verdict.networks.items() if each}
    own = max((len(each.own) for each in known.values()), default=0)
    header = ["network", "cosine", "error", "agreement", "KL"]
    header += [f"task {number}" for number in range(own)]
    has_score = any(each.score is not None for each in known.values())
    rows = []
    for name, each in verdict.networks.items():
        cells = [*([None] * (4 + own)), None]
        if each:
            figures = (each.cosine, each.error, each.agreement, each.divergence)
            cells = [*figures, *each.own, each.score]
        cells = cells if has_score else cells[:-1]
        rows.append([name, *("-" if x is None else f"{x:.4f}" for x in cells)])
    header += ["score"] if has_score else []
    return [
        verdict.sentence,
        "",
        table(header, rows),
        "",
        "Outputs are compared with those of the parent whose task a sample is from, or",
        "where that is not known, with the mean of the parents weighted by sureness.",
        "Error: squared distance, as a share of the variance. Agreement: share of the",
        "largest outputs that are the same. Task: cosine on the samples of one parent.",
    ]


def judgement(result: MergeResult) -> list[str]:
    """Say first of all if a parent alone is better.

    Args:
        result: of the merge.

    Returns:
        Lines of Markdown; none if it is not.
    """
    verdict = result.verdict
    advice = verdict and advice_of(verdict, bool(result.recipe.get("refit")))
    if not verdict or not advice:
        return []
    return [f"**Worse than a parent alone.** {verdict.sentence} {advice}", ""]


def _decisive(recipe: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return what decided a merge: all of its recipe but an alpha that is not used."""
    method = recipe.get("method")
    row = TABLE.get(method) if isinstance(method, str) else None
    unused = {"alpha"} if row and not row.blends else set()
    return [(key, value) for key, value in recipe.items() if key not in unused]


def _labels(result: MergeResult) -> list[str]:
    header = [
        "label",
        "units",
        "per unit of",
        "stayed",
        "shared by models",
        "own pairs",
    ]
    rows = [
        [
            name,
            str(label.size),
            " ".join(label.parents) or "-",
            *_fates(result.assignment[name]),
        ]
        for name, label in result.spec.labels.items()
    ]
    return [
        table(header, rows),
        "",
        "Stayed: share of the units that kept their place. Shared by models: share of",
        "the merged units with a unit from every model. Own pairs: share of the merged",
        "units with two or more units of one model.",
    ]


def _changes(result: MergeResult) -> list[str]:
    """List what became of leaves, those of one fate in one line."""
    fates: dict[str, list[str]] = {}
    for path, fate in result.changes.items():
        fates.setdefault(fate, []).append(path)
    return [f"- {fate}: {', '.join(leaves)}" for fate, leaves in fates.items()]


def _fates(assignment: np.ndarray) -> list[str]:
    units = assignment.shape[-1]
    flat = assignment.reshape(len(assignment), -1, units)
    counts = np.stack(
        [np.apply_along_axis(np.bincount, -1, rows, minlength=units) for rows in flat]
    )
    shares = (
        (flat == np.arange(units)).mean(),
        (counts > 0).all(axis=0).mean(),
        (counts > 1).any(axis=0).mean(),
    )
    return [f"{share:.0%}" for share in shares]


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items())
    return str(value)
