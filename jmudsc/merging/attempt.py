"""Attempt: one way to merge the models, tried on statistics that all ways share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import jax

from jmudsc.matching.coordinate_descent import Match, matcher
from jmudsc.matching.journal import Journal
from jmudsc.matching.moment_cache import budget_beside
from jmudsc.matching.moments import Moments
from jmudsc.merging.alpha_search import Best, search_alpha
from jmudsc.merging.candidate import Candidate, candidate, score_of
from jmudsc.merging.held_out import Split
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import Prepared
from jmudsc.merging.watch import Watch


@dataclass(frozen=True, eq=False)
class Grounds:
    """What all attempts to merge some models share.

    Attributes:
        prepared: the models.
        moments: of their activations; None without.
        split: the batches.
        key: a PRNG key for matching.
        budget: bytes that statistics, and what is remembered of weights, may take; None
            for all there are.
        journal: where the steps of matching are kept; None for nowhere.
        watch: told of the stages.
        matches: what was matched so far, by the method and the balance.
    """

    prepared: Prepared
    moments: Mapping[str, Moments] | None
    split: Split
    key: jax.Array
    budget: int | None
    journal: Journal | None
    watch: Watch
    matches: dict[tuple[str, float], Match] = field(default_factory=dict)


def attempt(grounds: Grounds, options: MergeOptions) -> Best[Candidate]:
    """Merge by some options, at the best of the balances that they name.

    Args:
        grounds: what is merged.
        options: of this attempt, with a method that is a row of the table.

    Returns:
        The best candidate.
    """
    prepared = replace(grounds.prepared, options=options)
    batches = grounds.split.used
    match_at = _matching(grounds, options)

    def candidate_at(balance: float) -> Candidate:
        return candidate(prepared, match_at(balance), batches, grounds.watch)

    return search_alpha(candidate_at, score_of(prepared, batches), options.balances)


def _matching(grounds: Grounds, options: MergeOptions) -> Callable[[float], Match]:
    """Prepare to match at several balances; what was matched before is taken."""
    watch, prepared = grounds.watch, grounds.prepared
    with watch.stage(None, "matching"):
        match_at = matcher(
            prepared.spec,
            prepared.trunks,
            grounds.moments,
            method=options.method,
            reference=options.reference,
            key=grounds.key,
            budget=budget_beside(grounds.moments or {}, grounds.budget),
            journal=grounds.journal,
            progress=watch.progress,
        )

    def matched(balance: float) -> Match:
        known = options.method, balance
        if known not in grounds.matches:
            with watch.stage("matching", "matching", total=None):
                grounds.matches[known] = match_at(balance)
        return grounds.matches[known]

    return matched
