"""Candidate: what one balance makes of the models: matched, averaged and repaired."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from jmudsc.lazy import to_device
from jmudsc.matching.coordinate_descent import Match
from jmudsc.matching.methods import TABLE
from jmudsc.merging.alpha_search import agreement_with
from jmudsc.merging.heads import repaired_apart
from jmudsc.merging.prepare import Prepared
from jmudsc.merging.watch import Watch
from jmudsc.progress import Progress
from jmudsc.repairs.merger import Merger
from jmudsc.repairs.pipeline import repaired
from jmudsc.repairs.table import asked


@dataclass(frozen=True)
class Candidate:
    """What one balance gives.

    Attributes:
        match: which units were matched.
        networks: the merged variables, one per model where leaves are separate.
        changes: what was done with each leaf after averaging.
    """

    match: Match
    networks: list[PyTree]
    changes: Mapping[str, str]


def candidate(
    prepared: Prepared, match: Match, batches: Iterable[PyTree] | None, watch: Watch
) -> Candidate:
    """Average models by what was matched, and repair the result.

    Args:
        prepared: the models.
        match: which units were matched.
        batches: the calibration batches; None for none.
        watch: told of the stages.

    Returns:
        The candidate, computed to the end.
    """
    options, assignment = prepared.options, match.assignment
    with watch.stage("combining", "combining"):
        average = TABLE[options.method].combine
        shares = _shares(prepared)
        merged = average(prepared.spec, prepared.trunks, assignment, shares)
        merged = merged if options.update_fn is None else to_device(merged)
        jax.block_until_ready(merged)
    with watch.stage(None, "repairing"):
        repair = repaired_apart if options.separate else _repaired
        ended = repair(prepared, assignment, merged, batches, watch.progress)
        networks = [network for network, _ in ended]
        jax.block_until_ready(networks)
    return Candidate(match, networks, ended[0][1])


def score_of(
    prepared: Prepared, batches: Iterable[PyTree] | None
) -> Callable[[Candidate], float]:
    """Return the function that says how good candidates are.

    Args:
        prepared: the models.
        batches: the calibration batches; None for none.

    Returns:
        A function that is larger for better ones: the user's, or with alpha "auto" how
        well they agree with their parents; 0 where nothing is searched for.
    """
    options = prepared.options
    if options.alpha == "auto":
        agreement = agreement_with(prepared.apply_fns, prepared.models, batches or ())
        return lambda candidate: agreement(candidate.networks)
    score = options.score
    if score is None:
        return lambda candidate: 0.0
    shown = _all if options.separate else _first
    return lambda candidate: score(shown(candidate))


def _shares(prepared: Prepared) -> Sequence[float]:
    """Return the share of each model in what is repaired, all of it of one to start."""
    start = prepared.options.start
    if isinstance(start, str):
        return prepared.shares
    return [float(number == start) for number in range(len(prepared.models))]


def _all(candidate: Candidate) -> Any:
    return candidate.networks


def _first(candidate: Candidate) -> Any:
    return candidate.networks[0]


def _repaired(
    prepared: Prepared,
    assignment: Mapping[str, np.ndarray],
    merged: PyTree,
    batches: Iterable[PyTree] | None,
    progress: Progress,
) -> list[tuple[PyTree, dict[str, str]]]:
    """Repair a merged network of which all leaves were merged."""
    merger = Merger(
        prepared.spec,
        prepared.apply_fns[0],
        prepared.models,
        assignment,
        prepared.shares,
        prepared.update_fns[0],
    )
    rows = asked(prepared.options)
    return [repaired(rows, merger, merged, batches, progress)]
