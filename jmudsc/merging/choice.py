"""Choice: the merge that is asked for, or by method "best" the best of several."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from jmudsc.batches import first_batch
from jmudsc.derivation.program import trace
from jmudsc.matching.coordinate_descent import Match
from jmudsc.merging.alpha_search import Best
from jmudsc.merging.attempt import attempt, Grounds
from jmudsc.merging.candidate import Candidate
from jmudsc.merging.comparison import Comparison
from jmudsc.merging.contenders import (
    BEST,
    named,
    with_a_new_readout,
    with_and_without_refit,
)
from jmudsc.merging.judge import in_place, Judge, Measured
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import Prepared
from jmudsc.merging.separate import is_carried
from jmudsc.merging.verdict import parent_name
from jmudsc.reordering.permute import identity
from jmudsc.repairs.find_layers import find_layers
from jmudsc.repairs.layer_by_layer import paths_of
from jmudsc.repairs.layers import Linear


@dataclass(frozen=True)
class Chosen:
    """The merge that is kept.

    Attributes:
        prepared: the models, with the options of this merge.
        best: what it gave.
        measured: how it compares with its parents; None where nothing judges it.
        name: what it is called among those that `best` tried; None for other methods.
        tried: by name what `best` tried, the parents too, and how each compares.
        is_parent: whether it is a parent as it was, and nothing was merged.
    """

    prepared: Prepared
    best: Best[Candidate]
    measured: Measured | None
    name: str | None = None
    tried: Mapping[str, Measured] = field(default_factory=dict)
    is_parent: bool = False


def choose(grounds: Grounds, judge: Judge | str) -> Chosen:
    """Merge as the options say.

    Method "best" starts from the parents as they are, and keeps what is better on the
    batches that are judged on: what it returns is never below the best parent there.

    Args:
        grounds: what is merged.
        judge: compares networks, or why none can.

    Returns:
        The merge.

    Raises:
        ValueError: if there is nothing to choose the best by.
    """
    prepared = grounds.prepared
    options = prepared.options
    if options.method != BEST:
        best = attempt(grounds, options)
        networks = best.candidate.networks
        measured = None if isinstance(judge, str) else judge.measured(networks)
        return Chosen(prepared, best, measured)
    if isinstance(judge, str):
        raise ValueError(
            f'merge: method: expected something to choose by with "best", got none, '
            f"since {judge}. Use another method."
        )
    kept = _parent(prepared, judge)
    tried = {name: judge.references[name] for name in _parents(prepared)}
    for name, wanted in _contenders(grounds, judge):
        best = attempt(grounds, wanted)
        measured = judge.measured(best.candidate.networks)
        tried[name] = measured
        assert kept.measured is not None
        if measured.quality > kept.measured.quality:
            kept = Chosen(replace(prepared, options=wanted), best, measured, name)
    return replace(kept, tried=tried)


def comparison_of(judge: Judge, chosen: Chosen) -> Comparison | None:
    """Say how all that was tried compares.

    Args:
        judge: compares networks.
        chosen: the merge that is kept.

    Returns:
        The comparison; None where but one merge was made.
    """
    if chosen.name is None or chosen.measured is None:
        return None
    parents = _parents(judge.prepared)
    merges = {n: each for n, each in chosen.tried.items() if n not in parents}
    return Comparison(
        chosen.name,
        tuple(
            name
            for name, each in merges.items()
            if name != chosen.name and judge.is_as_good(each, chosen.measured)
        ),
        {name: judge.verdict(each) for name, each in merges.items()},
    )


def _parents(prepared: Prepared) -> list[str]:
    """Return what the parents are called."""
    return [parent_name(number) for number in range(len(prepared.models))]


def _contenders(grounds: Grounds, judge: Judge) -> Iterator[tuple[str, MergeOptions]]:
    """Yield the merges that can be made, with their names."""
    prepared = grounds.prepared
    if prepared.options.among:
        yield from named(prepared.options)
        return
    contenders = list(with_and_without_refit(prepared.options))
    if readout := _readout(grounds):
        number = judge.best_parent()
        contenders.append(with_a_new_readout(prepared.options, number, readout))
    for name, options in contenders:
        zips = any(row.zips for row in options.rows)
        if is_carried(prepared.apart, zips) and not options.problems():
            yield name, options


def _readout(grounds: Grounds) -> list[str]:
    """Return the leaves of the last layer, if it is one that can be fitted."""
    prepared = grounds.prepared
    if prepared.options.separate or prepared.options.only:
        return []
    batch = first_batch("merge", grounds.split.used or ())
    program = trace(prepared.apply_fns[0], prepared.models[0], batch)
    stops = find_layers(program, prepared.spec).stops
    return paths_of(stops[-1]) if stops and isinstance(stops[-1], Linear) else []


def _parent(prepared: Prepared, judge: Judge) -> Chosen:
    """Choose the best parent."""
    number, count = judge.best_parent(), len(prepared.models)
    rows = identity(prepared.spec).items()
    match = Match({name: np.stack([row] * count) for name, row in rows})
    networks = in_place(prepared, prepared.trunks[number])
    name = parent_name(number)
    _, options = next(with_and_without_refit(prepared.options))
    best = Best(Candidate(match, networks, {}), 0.5, ())
    chosen = replace(prepared, options=options)
    return Chosen(chosen, best, judge.references[name], name, is_parent=True)
