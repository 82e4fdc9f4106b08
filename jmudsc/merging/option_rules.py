"""Option rules: what the options of a merge say of each other.

Each is a function of `MergeOptions` that are right by themselves, and returns the
sentence that says what is wrong, or None.
"""

from collections.abc import Callable
from typing import Any

from jmudsc.matching.methods import names_of as methods_that
from jmudsc.merging.contenders import BEST
from jmudsc.merging.option_values import MERGE


def _search_has_a_score(options: Any) -> str | None:
    if options.alpha != "search" or options.score is not None:
        return None
    return (
        'alpha: expected a score with "search", got none. Pass score, a function of '
        'variables that is larger for better ones, or alpha="auto", which needs none.'
    )


def _method_has_a_balance(options: Any) -> str | None:
    if not options.is_searched or any(row.blends for row in options.rows):
        return None
    return (
        f"alpha: expected a method with a balance to choose, got {options.method}. Use "
        f"{methods_that(lambda row: row.blends)}, or leave alpha out."
    )


def _best_is_judged(options: Any) -> str | None:
    if options.method != BEST or options.held_out is not None:
        return None
    return (
        f'held_out: expected a share with method="{BEST}", which chooses by batches '
        "that are held out, got None. Leave it out, or use another method."
    )


def _several_are_tried(options: Any) -> str | None:
    if not options.among or options.method == BEST:
        return None
    return (
        f'among: expected method="{BEST}", which alone tries several merges, got '
        f'"{options.method}". Pass method="{BEST}", or leave among out.'
    )


def _refit_is_asked_for(options: Any) -> str | None:
    if options.refit is not None or options.method == BEST:
        return None
    unset = {"target": None, "sample_weight": None, "only": (), "start": MERGE}
    given = [name for name, value in unset.items() if getattr(options, name) != value]
    if not given:
        return None
    return (
        f"{given[0]}: expected a refit, which alone uses it, got none. Pass "
        f'refit="least-squares", or leave {given[0]} out.'
    )


def _start_is_carried(options: Any) -> str | None:
    if options.start == MERGE or (options.method != BEST and not options.rows[0].zips):
        return None
    return (
        f"start: expected a method that leaves a parent what it is, got "
        f"{options.method}. Use average, or one that aligns."
    )


# What options say of each other; looked at where each is right by itself.
RULES: tuple[Callable[[Any], str | None], ...] = (
    _method_has_a_balance,
    _search_has_a_score,
    _best_is_judged,
    _several_are_tried,
    _refit_is_asked_for,
    _start_is_carried,
)
