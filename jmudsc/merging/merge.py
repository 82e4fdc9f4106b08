"""Merge: the whole way from models and batches to one network, in one call."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.derivation.check_spec import check_spec
from jmudsc.keys import check_key, two_keys
from jmudsc.lazy import to_device
from jmudsc.matching.activation_statistics import collect
from jmudsc.matching.journal import Journal
from jmudsc.matching.moments import Moments
from jmudsc.merging.alpha_search import ALPHAS
from jmudsc.merging.attempt import Grounds
from jmudsc.merging.choice import choose, Chosen, comparison_of
from jmudsc.merging.contenders import BEST
from jmudsc.merging.doubts import doubts_of_merge, doubts_of_models
from jmudsc.merging.held_out import HELD_OUT, split
from jmudsc.merging.inputs import check_inputs, Inputs, loaded
from jmudsc.merging.judge import Judge, judge_of, unjudged
from jmudsc.merging.machine import machine
from jmudsc.merging.option import Outcome
from jmudsc.merging.option_values import as_pairs, as_tuple, MERGE
from jmudsc.merging.options import MergeOptions, recorded
from jmudsc.merging.prepare import prepare, Prepared
from jmudsc.merging.result import MergeResult
from jmudsc.merging.separate import check_carried, check_read
from jmudsc.merging.verdict import advice_of, Verdict
from jmudsc.merging.watch import Watch
from jmudsc.paths import plural
from jmudsc.progress import Counted, Progress, silent
from jmudsc.repairs.least_squares import RIDGE
from jmudsc.repairs.mixing import SampleWeight
from jmudsc.repairs.table import asked
from jmudsc.sharding import placed_like
from jmudsc.spec.alike import Alike
from jmudsc.spec.check_variables import check_finite, check_models
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn, UpdateFn

_log = logging.getLogger(__name__)


def merge(
    apply_fn: ApplyFn | Sequence[ApplyFn],
    models: Sequence[PyTree],
    batches: Iterable[PyTree] | None,
    *,
    method: str = "mudsc-zip",
    among: str | Iterable[str] = (),
    alpha: float | str = 0.5,
    key: jax.Array,
    spec: PermutationSpec | None = None,
    frozen: str | Iterable[str] = (),
    separate: str | Iterable[str] = (),
    alike: Alike = (),
    weights: Sequence[float] | None = None,
    reference: str = "first",
    update_fn: UpdateFn | Sequence[UpdateFn] | None = None,
    refit: str | None = None,
    ridge: float = RIDGE,
    owners: Sequence[int] | None = None,
    target: str | None = None,
    sample_weight: SampleWeight | None = None,
    only: str | Iterable[str] = (),
    start: str | int = MERGE,
    repair: str | None = None,
    score: Callable[[Any], float] | None = None,
    alphas: Sequence[float] = ALPHAS,
    held_out: float | None = HELD_OUT,
    check: bool = True,
    budget: int | None = None,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge networks trained apart into one that does all their tasks.

    Derives the permutation spec and checks it on the first model, gathers activation
    statistics, matches the units, averages them, and resets running statistics. On
    batches that are held out the merged network is compared with what went into it.

    Models that are on disk are read leaf by leaf, one whole model at a time where
    activations are collected, and the merged variables are lazy as well: `save` merges
    them while it writes. The result is the same, bit for bit. `check` reads the first
    model whole, `update_fn` the merged one, and the verdict one network at a time;
    `refit`, `repair`, `separate`, `best` and a balance that is searched for need all
    models at once, and read them first.

    Args:
        apply_fn: a pure JAX function `(variables, batch) -> outputs`, in evaluation
            mode; with `separate` also one per model, where their heads differ.
        models: the variables of each model, two or more of one architecture; from
            `load(..., lazy=True)` they stay on disk (see below).
        batches: calibration batches of what `apply_fn` takes, from all tasks; any
            re-iterable (a list, say). None for `average` and `weight-*` with a `spec`.
        method: one of `jmudsc.METHODS`: what is compared (`weight`, `activation`, or
            `mudsc` for both) and how units are paired (`align` one-to-one, `zip` also
            within one model); `average` leaves them in place. `best` tries `average`,
            `mudsc-align` and `mudsc-zip`, each with and without a refit, and returns
            what is best on the batches that are held out: one of them, or the best
            parent as it is. `MergeResult.comparison` has a row for each.
        among: what `best` tries in the place of these: methods, each with the repairs
            that it is to have, as in `["mudsc-align", "mudsc-zip + refit"]`; repairs
            are `refit`, `rescale` and `pooled`.
        alpha: the balance of `mudsc-*`, share of the weight similarity in [0, 1];
            `search` for that of `alphas` with the best `score`, `auto` for that whose
            merged network agrees best with its parents (see `joint_agreement`).
        key: a PRNG key; the same key gives the same bits on the same machine. With
            another number of CPU cores the last bits of sums over samples, and what
            follows from them, may differ; the result's recipe says how many there were.
        spec: a permutation spec to use instead of deriving one.
        frozen: patterns of labels and leaves whose units stay in place, as for
            `freeze`.
        separate: patterns of leaves that are not averaged: every model keeps its own,
            carried into the merged coordinates, in `MergeResult.networks`. Heads of
            several tasks, or all leaves beyond a depth.
        alike: patterns of leaves that `apply_fn` does not read and that belong to what
            moves, with those of the leaves that they move like: `{"ema/*":
            "params/*"}`, where the same text takes the place of the same `*`. They are
            permuted and averaged as those are, and are no evidence of what a unit does.
            Leaves that are not read and not named stay in place, with a warning.
        weights: the share of each model in the average; None for equal shares.
        reference: what more than two models are aligned to: `first`, `mean` or
            `universe`, as for `match`.
        update_fn: `(variables, batch) -> variables` as training updates running
            statistics; given, they are reset over `batches`, after a `refit` once
            more; with `repair="rescale"`, which sets them too, it is not used. One or
            one per model, as `apply_fn`.
        refit: "least-squares" to fit every linear layer to what the parents do on the
            batches (see `jmudsc.refit`); None for the average. With `separate` the
            layers of the trunk to all parents, those of each head to its own parent.
        ridge: strength of the refit's penalty, above 0.
        owners: for each batch the number of the model whose task it is from, if that is
            known: the refit then follows that model on it, and the merged network
            learns to tell the tasks apart; the verdict compares with that model.
        target: whom the refit follows on each sample: its "owner", all parents by their
            "sureness", or all alike, the "ensemble"; None for owners where they are
            known, and else for sureness.
        sample_weight: `(batch, outputs of the parents) -> weights` of each sample, or
            of each of its places, in the refit, 0 or more; None for 1.
        only: patterns of the leaves that are refit, with the bias of a layer those of
            its kernel; none for all.
        start: what the refit starts from: "merge", or the number of a parent, which
            then is kept but for what is refit, in the merged order of its units. With
            `only` of the last layer: "keep parent 2, fit its read-out to all".
        repair: "rescale" to give every unit the mean and standard deviation of its
            parents over the batches (see `jmudsc.repair`); "pooled" for running
            statistics of the parents together, which needs no batches (see
            `jmudsc.pool_batch_stats`); None for neither. Heads as with `refit`.
        score: larger for better variables; with `separate` it is given those of all
            networks. It decides a search of alpha, the verdict, and what is `best`.
        alphas: the balances that `search` and `auto` try.
        held_out: the share of the batches that nothing but the verdict reads, of those
            of each owner where they are known: every tenth of them, from the fifth on.
            With fewer than five nothing is held out, and the merge is judged on what it
            was made from; with 0 as well. None for no verdict.
        check: whether to check the spec on the first model, with `separate` on all.
        budget: bytes that statistics of activations, and what is remembered of weights,
            may take: with less than all need there are several passes over the batches,
            and the statistics lie on disk, as `collect` says. The result is the same,
            bit for bit. None for one pass.
        journal: where the steps of matching are kept, to be taken up again after a
            crash; its identity must say what models these are.
        progress: called with the stage, how much of it is done, and out of how much
            (None where that is not known).

    Returns:
        The merged variables with spec, assignment, history and what decided the merge.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch, `models` no list,
            `key` no key, `spec` no spec, or `apply_fn` takes something else.
        ValueError: if the models differ or are not finite, the spec is wrong, batches
            are missing, empty or can be read only once, an argument is out of range, or
            separate leaves cannot follow a zip.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def apply_fn(variables, x):
        ...     return jax.nn.relu(x @ variables["in"]) @ variables["out"]
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> a = {"in": jax.random.normal(keys[0], (3, 8)), "out": jnp.ones((8, 2))}
        >>> b = {"in": a["in"][:, ::-1], "out": a["out"][::-1]}  # a, permuted
        >>> batches = [jax.random.normal(keys[1], (64, 3))]
        >>> result = merge(apply_fn, [a, b], batches, key=keys[2])
        >>> bool(jnp.allclose(result.variables["in"], a["in"]))
        True
    """
    options = MergeOptions(
        update_fn=update_fn,
        method=method,
        among=as_tuple(among),
        alpha=alpha,
        weights=as_tuple(weights),
        check=check,
        score=score,
        alphas=as_tuple(alphas),
        held_out=held_out,
        frozen=as_tuple(frozen),
        separate=as_tuple(separate),
        alike=as_pairs(alike),
        reference=reference,
        refit=refit,
        ridge=ridge,
        owners=as_tuple(owners),
        target=target,
        sample_weight=sample_weight,
        only=as_tuple(only),
        start=start,
        repair=repair,
    )
    inputs = Inputs(apply_fn, models, batches, spec)
    return merge_with(
        options, inputs, key=key, budget=budget, journal=journal, progress=progress
    )


def merge_with(
    options: MergeOptions,
    inputs: Inputs,
    *,
    key: jax.Array,
    budget: int | None = None,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge as `merge` does, by options that are a record.

    Args:
        options: what decides the merge.
        inputs: what is merged.
        key: a PRNG key; the same key gives the same bits.
        budget: bytes that statistics may take, as for `merge`.
        journal: where the steps of matching are kept, as for `merge`.
        progress: called with the stage, how much of it is done, and out of how much.

    Returns:
        The merged variables with spec, assignment, history and what decided the merge.

    Raises:
        TypeError: as `merge`.
        ValueError: as `merge`.
    """
    watch = Watch(progress or silent)
    options.checked("merge")
    check_key("merge", key)
    check_models("merge", inputs.models)
    check_inputs("merge", inputs, options)
    proof_key, match_key = two_keys(key)
    given = inputs.models
    inputs, first = loaded("merge", inputs, options)
    # Processes that read batches of their own would hold out others than one does.
    share = options.held_out if jax.process_count() == 1 else None
    parts = split(inputs.batches, share, options.owners)
    kept = dataclasses.replace(options, owners=parts.owners)
    prepared = prepare("merge", inputs, first, kept, watch)
    check_finite("merge", prepared.models)
    _warn(doubts_of_models(prepared.models))
    if options.among or options.method != BEST:
        check_carried("merge", prepared.apart, any(r.zips for r in options.rows))
    _check_specs(prepared, first, proof_key, watch)
    moments = _statistics(prepared, parts.used, watch, budget)
    grounds = Grounds(prepared, moments, parts, match_key, budget, journal, watch)
    judge = _judged(grounds)
    chosen = choose(grounds, judge)
    if not chosen.is_parent:
        _warn_of_statistics(chosen.prepared, parts.used)
    _warn(doubts_of_merge(chosen.prepared, chosen.best.candidate, parts.used))
    networks = [
        jax.tree.map(placed_like, network, model)
        for network, model in zip(chosen.best.candidate.networks, given, strict=False)
    ]
    result = _result(options, chosen, networks, watch)
    if isinstance(judge, str):
        recipe = {**result.recipe, "verdict": f"none, since {judge}"}
        return dataclasses.replace(result, recipe=recipe)
    verdict, comparison = _verdict(judge, chosen), comparison_of(judge, chosen)
    return dataclasses.replace(result, verdict=verdict, comparison=comparison)


def _warn(doubts: Sequence[str]) -> None:
    for sentence in doubts:
        _log.warning("merge: %s", sentence)


def _check_specs(
    prepared: Prepared, batch: PyTree | None, key: jax.Array, watch: Watch
) -> None:
    """Check the spec on the first model, on each that has a head, if that is wanted."""
    if not prepared.options.check or batch is None:
        return
    with watch.stage("checking the spec", "checking"):
        for spec, apply_fn, model in prepared.networks:
            check_spec(spec, apply_fn, to_device(model), batch, key=key)


def _statistics(
    prepared: Prepared,
    batches: Iterable[PyTree] | None,
    watch: Watch,
    budget: int | None,
) -> Mapping[str, Moments] | None:
    """Gather the moments of activations, if the method has a use for them."""
    if batches is None or not any(row.activations for row in prepared.options.rows):
        return None
    seen = Counted(batches, "collecting activations", watch.progress)
    with watch.stage(None, "statistics"):
        spec, apply_fn, models = prepared.spec, prepared.trunk_fn, prepared.trunks
        moments = collect(spec, apply_fn, models, seen, budget=budget)
        jax.block_until_ready([m.comoment for m in moments.values()])
    check_read("merge", prepared.apart, moments)
    return moments


def _warn_of_statistics(prepared: Prepared, batches: Iterable[PyTree] | None) -> None:
    """Warn of running statistics that no repair sets."""
    repairs = asked(prepared.options)
    done = [row for row in repairs if batches is not None or not row.needs_batches]
    count = len(prepared.spec.statistics)
    if count and not done:
        _log.warning(
            "merge: %s averaged, not reset. Pass update_fn and batches, or call "
            "reset_batch_stats.",
            plural(count, "running statistic was", "running statistics were"),
        )


def _judged(grounds: Grounds) -> Judge | str:
    """Run the parents over what a merge is judged on; or say why nothing is judged."""
    if reason := unjudged(grounds.prepared, grounds.split):
        return reason
    with grounds.watch.stage("judging", "judging"):
        return judge_of(grounds.prepared, grounds.split)


def _verdict(judge: Judge, chosen: Chosen) -> Verdict:
    """Judge what is kept, and warn if a parent alone is better."""
    assert chosen.measured is not None
    verdict = judge.verdict(chosen.measured)
    is_refit = chosen.prepared.options.refit is not None
    if advice := advice_of(verdict, is_refit):
        _log.warning(
            "merge: expected a network that is better than any parent alone, got one "
            "that is worse. %s %s",
            verdict.sentence,
            advice,
        )
    return verdict


def _result(
    options: MergeOptions,
    chosen: Chosen,
    networks: Sequence[PyTree],
    watch: Watch,
) -> MergeResult:
    """Put together what a merge gave."""
    best, prepared = chosen.best, chosen.prepared
    tried = {name: measured.quality for name, measured in chosen.tried.items()}
    shares = prepared.shares
    outcome = Outcome(shares, best.alpha, best.scores, chosen.name, tried)
    recipe = {**recorded(options, outcome), "machine": machine()}
    return MergeResult(
        variables=networks[0],
        spec=prepared.spec,
        assignment=best.candidate.match.assignment,
        history=best.candidate.match.history,
        recipe=recipe,
        changes=best.candidate.changes,
        networks=tuple(networks) if options.separate else (),
        seconds=watch.seconds,
    )
