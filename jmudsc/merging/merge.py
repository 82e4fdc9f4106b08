"""Merge: the whole way from models and batches to one network, in one call."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batches import check_iterable, first_batch
from jmudsc.derivation.check_spec import check_spec
from jmudsc.derivation.infer_spec import infer_spec
from jmudsc.lazy import to_device
from jmudsc.matching.coordinate_descent import Match, matcher
from jmudsc.matching.journal import Journal
from jmudsc.matching.methods import check_alpha, Method, method_of, names_of
from jmudsc.matching.moments import collect
from jmudsc.matching.multi_model import check_reference
from jmudsc.merging.agreement import agreement_with
from jmudsc.merging.alpha_search import ALPHAS, check_balance, search_alpha
from jmudsc.merging.heads import finished_apart
from jmudsc.merging.result import MergeResult
from jmudsc.merging.separate import (
    check_carried,
    check_read,
    take_apart,
    trunk_fn,
    trunks_of,
)
from jmudsc.progress import counted, Progress, silent, timed
from jmudsc.reordering.combine import shares_of
from jmudsc.repairs.least_squares import RIDGE
from jmudsc.repairs.pipeline import check_finish, Finish, finished
from jmudsc.sharding import Automatic, automatic, is_explicit, placed_like
from jmudsc.spec.check_variables import check_finite, check_same
from jmudsc.spec.freeze import freeze
from jmudsc.spec.permutation_spec import PermutationSpec
from jmudsc.types import ApplyFn, UpdateFn

_log = logging.getLogger(__name__)


def merge(
    apply_fn: ApplyFn | Sequence[ApplyFn],
    models: Sequence[PyTree],
    batches: Iterable[PyTree] | None,
    *,
    method: str = "mudsc-zip",
    alpha: float | str = 0.5,
    key: jax.Array,
    spec: PermutationSpec | None = None,
    frozen: str | Iterable[str] = (),
    separate: str | Iterable[str] = (),
    weights: Sequence[float] | None = None,
    reference: str = "first",
    update_fn: UpdateFn | Sequence[UpdateFn] | None = None,
    refit: str | None = None,
    ridge: float = RIDGE,
    owners: Sequence[int] | None = None,
    repair: str | None = None,
    score: Callable[[Any], float] | None = None,
    alphas: Sequence[float] = ALPHAS,
    check: bool = True,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge networks trained apart into one that does all their tasks.

    Derives the permutation spec and checks it on the first model, gathers activation
    statistics, matches the units, averages them, and resets running statistics.

    Models that are on disk are read leaf by leaf, one whole model at a time where
    activations are collected, and the merged variables are lazy as well: `save` merges
    them while it writes. The result is the same, bit for bit. `check` reads the first
    model whole, `update_fn` the merged one; `refit`, `repair`, `separate` and a balance
    that is searched for need all models at once, and read them first.

    Args:
        apply_fn: a pure JAX function `(variables, batch) -> outputs`, in evaluation
            mode; with `separate` also one per model, where their heads differ.
        models: the variables of each model, two or more of one architecture; from
            `load(..., lazy=True)` they stay on disk (see below).
        batches: calibration batches of what `apply_fn` takes, from all tasks; any
            re-iterable (a list, say). None for `average` and `weight-*` with a `spec`.
        method: one of `jmudsc.METHODS`: what is compared (`weight`, `activation`, or
            `mudsc` for both) and how units are paired (`align` one-to-one, `zip` also
            within one model); `average` leaves them in place.
        alpha: the balance of `mudsc-*`, share of the weight similarity in [0, 1];
            `search` for that of `alphas` with the best `score`, `auto` for that whose
            merged network agrees best with its parents (see `joint_agreement`).
        key: a PRNG key; the same key gives the same bits.
        spec: a permutation spec to use instead of deriving one.
        frozen: patterns of labels and leaves whose units stay in place, as for
            `freeze`.
        separate: patterns of leaves that are not averaged: every model keeps its own,
            carried into the merged coordinates, in `MergeResult.networks`. Heads of
            several tasks, or all leaves beyond a depth.
        weights: the share of each model in the average; None for equal shares.
        reference: what more than two models are aligned to: `first`, `mean` or
            `universe`, as for `match`.
        update_fn: `(variables, batch) -> variables` as training updates running
            statistics; given, they are reset over `batches`, after a `refit` once
            more; with `repair="rescale"`, which sets them too, it is not used. One or
            one per model, as `apply_fn`.
        refit: "least-squares" to fit every map to what the parents do on the batches
            (see `jmudsc.refit`); None for the average. With `separate` the maps of the
            trunk to all parents, those of each head to its own parent.
        ridge: strength of the refit's penalty, above 0.
        owners: for each batch the number of the model whose task it is from, if that is
            known: the refit then follows that model on it, and the merged network
            learns to tell the tasks apart.
        repair: "rescale" to give every unit the mean and deviation of its parents over
            the batches (see `jmudsc.repair`); "pooled" for running statistics of the
            parents together, which needs no batches (see `jmudsc.pool_batch_stats`);
            None for neither. Heads as with `refit`.
        score: with `alpha="search"`, larger for better merged variables; with
            `separate` it is given the variables of all networks.
        alphas: the balances that `search` and `auto` try.
        check: whether to check the spec on the first model, with `separate` on all.
        journal: where the steps of matching are kept, to be taken up again after a
            crash; its identity must say what models these are.
        progress: called with the stage, how much of it is done, and out of how much
            (None where that is not known).

    Returns:
        The merged variables with spec, assignment, history and what decided the merge.

    Raises:
        TypeError: if `batches` is no iterable, or a single batch, or `spec` no spec.
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
    row = method_of("merge", method)
    check_balance("merge", alpha, alphas, row, score is not None)
    check_alpha("merge", 0.5 if isinstance(alpha, str) else alpha)
    check_reference("merge", reference)
    separate = [separate] if isinstance(separate, str) else list(separate)
    apply_fns = _per_model("apply_fn", apply_fn, len(models), separate)
    update_fns = _per_model("update_fn", update_fn, len(models), separate)
    if reads_all(alpha, refit, repair, separate):
        models = [to_device(model) for model in models]
    given, models = models, [automatic(model) for model in models]
    trunks = trunks_of("merge", models, separate) if separate else models
    check_same("merge", trunks)
    check_finite("merge", models)
    shares = shares_of("merge", weights, len(models))
    if spec is not None and not isinstance(spec, PermutationSpec):
        raise TypeError(
            f"merge: spec is a {type(spec).__name__}, a PermutationSpec is needed; "
            "pass it through read_spec(spec, apply_fn, variables, batch)."
        )
    check_batches(batches, row, spec)
    owned = None if owners is None else tuple(owners)
    finishes = [Finish(fn, refit, ridge, owned, repair) for fn in update_fns]
    for finish in finishes:
        check_finish("merge", finish, batches, len(models))
    say = progress or silent
    first = None
    if batches is not None:
        first = first_batch("merge", batches)
        if is_explicit(first):
            batches, first = Automatic(batches), automatic(first)
    frozen = [frozen] if isinstance(frozen, str) else list(frozen)
    check_key, match_key = jax.random.split(key)
    seconds: dict[str, float] = {}
    whole = list(zip(apply_fns, models, strict=True))[: None if separate else 1]
    if spec is None:
        say("deriving the spec", 0, 1)
        with timed(seconds, "deriving"):
            specs = [infer_spec(apply, model, first) for apply, model in whole]
    else:
        specs = [spec] * len(whole)
    specs = [freeze(specs[0], frozen), *specs[1:]] if frozen else specs
    parts = take_apart("merge", specs, models, trunks)
    check_carried("merge", parts, row.zips)
    if check and first is not None:
        say("checking the spec", 0, 1)
        with timed(seconds, "checking"):
            for own, (apply, model) in zip(specs, whole, strict=True):
                check_spec(own, apply, to_device(model), first, key=check_key)
    moments = None
    if batches is not None and row.activations:
        seen = counted(batches, "collecting activations", say)
        read = apply_fns[0]
        if separate:
            read = trunk_fn(read, models[0], paths.flatten(trunks[0]))
        with timed(seconds, "statistics"):
            moments = collect(parts.spec, read, trunks, seen)
            jax.block_until_ready([m.comoment for m in moments.values()])
        check_read("merge", parts, moments)
    with timed(seconds, "matching"):
        match_at = matcher(
            parts.spec,
            trunks,
            moments,
            method=method,
            reference=reference,
            key=match_key,
            journal=journal,
            progress=say,
        )

    def merged_at(balance: float) -> Candidate:
        say("matching", 0, None)
        with timed(seconds, "matching"):
            found = match_at(balance)
        say("combining", 0, 1)
        with timed(seconds, "combining"):
            merged = row.combine(parts.spec, trunks, found.assignment, shares)
            merged = merged if update_fn is None else to_device(merged)
            jax.block_until_ready(merged)
        after = found.assignment, merged, batches, shares, say
        with timed(seconds, "finishing"):
            if separate:
                ended = finished_apart(
                    finishes, parts, apply_fns, models, trunks, *after
                )
            else:
                parents = parts.spec, apply_fns[0], models
                ended = [finished(finishes[0], *parents, *after)]
            jax.block_until_ready([network for network, _ in ended])
        return Candidate(found, [n for n, _ in ended], ended[0][1])

    if alpha == "auto":
        score = agreement_with(apply_fns, models, batches or ())

    def scored(candidate: Candidate) -> float:
        networks = candidate.networks
        every = separate or alpha == "auto"
        return score(networks if every else networks[0]) if score else 0.0

    balances = alphas if isinstance(alpha, str) else (alpha,)
    best = search_alpha(merged_at, scored, balances)
    found = best.candidate.found
    networks = [
        jax.tree.map(placed_like, network, model)
        for network, model in zip(best.candidate.networks, given, strict=False)
    ]
    reset = update_fn is not None and batches is not None
    if parts.spec.statistics and not (reset or refit or repair):
        _log.warning(
            "merge: %d running statistics were averaged, not reset; pass update_fn and "
            "batches, or call reset_batch_stats.",
            len(parts.spec.statistics),
        )
    searched = isinstance(alpha, str)
    options = {
        "balance": alpha if searched else None,
        "scores": {f"{x:g}": y for x, y in best.scores} if searched else None,
        "frozen": frozen,
        "separate": separate,
        "reference": reference if len(models) > 2 else None,
        "refit": refit,
        "ridge": ridge if refit else None,
        "batches per model": owned and [owned.count(n) for n in range(len(models))],
        "repair": repair,
    }
    recipe = {"method": method, "alpha": best.alpha, "weights": list(shares)}
    recipe |= {} if check else {"checked": False}
    recipe |= {name: value for name, value in options.items() if value}
    return MergeResult(
        networks[0],
        parts.spec,
        found.assignment,
        found.history,
        recipe,
        best.candidate.changes,
        tuple(networks) if separate else (),
        seconds,
    )


@dataclass(frozen=True)
class Candidate:
    """What one balance gives.

    Attributes:
        found: the matching.
        networks: the merged variables, one per model where leaves are separate.
        changes: what was done with each leaf after averaging.
    """

    found: Match
    networks: list[PyTree]
    changes: dict[str, str]


def reads_all(
    alpha: float | str,
    refit: str | None,
    repair: str | None,
    separate: str | Iterable[str],
) -> bool:
    """Whether a merge needs all models in memory at once, wherever they are.

    Args:
        alpha: as for `merge`, like the others.
        refit: likewise.
        repair: likewise.
        separate: likewise.
    """
    return bool(refit or repair or separate or isinstance(alpha, str))


def _per_model(
    name: str, functions: Any, models: int, separate: Sequence[str]
) -> list[Any]:
    """Repeat a function for every model, unless there is one for each already."""
    if not isinstance(functions, Sequence):
        return [functions] * models
    if not separate:
        raise ValueError(
            f"merge: {name} is a list, one function is needed where all leaves are "
            "merged; pass separate= with the leaves of the heads."
        )
    if len(functions) != models:
        raise ValueError(
            f"merge: {name} has {len(functions)} functions for {models} models, needed "
            "is one for each, or one for all; pass as many as models."
        )
    return list(functions)


def check_batches(
    batches: Iterable[PyTree] | None, method: Method, spec: PermutationSpec | None
) -> None:
    """Check that there are batches where they are needed, to be read more than once.

    Args:
        batches: the calibration batches.
        method: the method.
        spec: the permutation spec, if there is one already.

    Raises:
        TypeError: as `check_iterable`.
        ValueError: if there are none, or they can be read once only.
    """
    if batches is None:
        if method.activations:
            others = names_of(lambda row: row.weights and not row.activations)
            raise ValueError(
                f"merge: {method.name} needs calibration batches, got None. Pass "
                f"batches, or use {others}."
            )
        if spec is None:
            raise ValueError(
                "merge: without batches the permutation spec cannot be derived; pass "
                "spec=infer_spec(apply_fn, variables, batch), where batch may be "
                "jax.ShapeDtypeStructs."
            )
        return
    check_iterable("merge", batches)
    if isinstance(batches, Iterator):
        raise ValueError(
            f"merge: batches is a {type(batches).__name__}, which can be read only "
            "once, and several passes are needed; pass a list, or an object whose "
            "__iter__ starts anew."
        )
