"""Merge: the whole way from models and batches to one network, in one call."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized

import jax
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batch_stats import reset_batch_stats, UpdateFn
from jmudsc.check import check_spec
from jmudsc.combine import combine, shares_of
from jmudsc.derive import infer_spec
from jmudsc.freeze import freeze
from jmudsc.match import check_method, match, Progress, uses_activations
from jmudsc.moments import collect
from jmudsc.pooled import pool_batch_stats
from jmudsc.refit import check_ridge, refit_layers, REFITS, RIDGE
from jmudsc.repair import repair_layers
from jmudsc.result import MergeResult
from jmudsc.spec import PermutationSpec
from jmudsc.trace import ApplyFn
from jmudsc.variables import check_covers, check_finite, check_same

_log = logging.getLogger(__name__)

REPAIRS = ("rescale", "pooled")


def merge(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    batches: Iterable[PyTree] | None,
    *,
    method: str = "mudsc-zip",
    alpha: float = 0.5,
    key: jax.Array,
    spec: PermutationSpec | None = None,
    frozen: str | Iterable[str] = (),
    weights: Sequence[float] | None = None,
    update_fn: UpdateFn | None = None,
    refit: str | None = None,
    ridge: float = RIDGE,
    repair: str | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge networks trained apart into one that does all their tasks.

    Derives the permutation spec and checks it on the first model, gathers activation
    statistics, matches the units, averages them, and then, as asked for, refits the
    maps, resets running statistics and repairs activations, in this order.

    Args:
        apply_fn: a pure JAX function `(variables, batch) -> outputs`, in evaluation
            mode.
        models: the variables of each model, two or more of one architecture.
        batches: calibration batches of what `apply_fn` takes, from all tasks; any
            re-iterable (a list, say). None for `average` and `weight-*` with a `spec`.
        method: `average`, `weight-align`, `activation-align`, `weight-zip`,
            `activation-zip`, `mudsc-align` or `mudsc-zip`.
        alpha: the balance of `mudsc-*`, share of the weight similarity in [0, 1].
        key: a PRNG key; the same key gives the same bits.
        spec: a permutation spec to use instead of deriving one.
        frozen: patterns of labels and leaves whose units stay in place, as for
            `freeze`.
        weights: the share of each model in the average; None for equal shares.
        update_fn: `(variables, batch) -> variables` as training updates running
            statistics; given, they are reset over `batches`. Not needed with `refit`
            or `repair`, which set them too.
        refit: "least-squares" to fit every map to what the parents do on the batches
            (see `jmudsc.refit`); None for the average.
        ridge: strength of the refit's penalty, above 0.
        repair: "rescale" to give every unit the mean and deviation of its parents over
            the batches (see `jmudsc.repair`); "pooled" for running statistics of the
            parents together, which needs no batches (see `jmudsc.pool_batch_stats`);
            None for neither.
        check: whether to check the spec on the first model.
        progress: called with the stage, how much of it is done, and out of how much
            (None where that is not known).

    Returns:
        The merged variables with spec, assignment, history, what decided the merge and
        what became of leaves that were refit or repaired.

    Raises:
        ValueError: if the models differ or are not finite, the spec is wrong, batches
            are missing, empty or can be read only once, or an argument is out of range.

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
    check_method("merge", method, alpha)
    check_same("merge", models)
    check_finite("merge", models)
    shares = shares_of("merge", weights, len(models))
    _check_batches(batches, method, spec)
    _check_finish(batches, update_fn, refit, ridge, repair)
    say = progress or _silent
    first = None if batches is None else _first(batches)
    if spec is None:
        say("deriving the spec", 0, 1)
        spec = infer_spec(apply_fn, models[0], first)
    frozen = [frozen] if isinstance(frozen, str) else list(frozen)
    spec = freeze(spec, frozen) if frozen else spec
    check_covers("merge", spec, paths.flatten(models[0]))
    check_key, match_key = jax.random.split(key)
    if check and first is not None:
        say("checking the spec", 0, 1)
        check_spec(spec, apply_fn, models[0], first, key=check_key)
    moments = None
    if batches is not None and uses_activations(method):
        seen = _counted(batches, "collecting activations", say)
        moments = collect(spec, apply_fn, models, seen)
    say("matching", 0, None)
    found = match(
        spec,
        models,
        moments,
        method=method,
        alpha=alpha,
        key=match_key,
        progress=say,
    )
    say("combining", 0, 1)
    merged = combine(spec, models, found.assignment, shares)
    changes: dict[str, str] = {}
    parts = spec, apply_fn, models, found.assignment
    if refit and batches is not None:
        seen = _counted(batches, "refitting", say)
        merged, changes = refit_layers(*parts, merged, seen, ridge, shares)
    if update_fn is not None and batches is not None and repair != "rescale":
        seen = _counted(batches, "resetting statistics", say)
        merged = reset_batch_stats(update_fn, merged, seen)
    elif repair == "rescale" and batches is not None:
        seen = _counted(batches, "repairing", say)
        merged, repaired = repair_layers(*parts, merged, seen, shares)
        changes = _both(changes, repaired)
    elif repair == "pooled":
        merged = pool_batch_stats(spec, models, found.assignment, merged, shares)
    elif spec.statistics and not refit:
        _log.warning(
            "merge: %d running statistics were averaged, not reset; pass update_fn and "
            "batches, or call reset_batch_stats.",
            len(spec.statistics),
        )
    recipe = {"method": method, "alpha": alpha, "weights": list(shares)}
    recipe |= {"frozen": frozen} if frozen else {}
    recipe |= {"refit": refit, "ridge": ridge} if refit else {}
    recipe |= {"repair": repair} if repair else {}
    return MergeResult(merged, spec, found.assignment, found.history, recipe, changes)


def _both(first: Mapping[str, str], then: Mapping[str, str]) -> dict[str, str]:
    """Put together what was done with each leaf, one after the other."""
    told = dict(first)
    for path, done in then.items():
        before = told.get(path, done)
        told[path] = done if before == done else f"{before}; {done}"
    return told


def _check_finish(
    batches: Iterable[PyTree] | None,
    update_fn: UpdateFn | None,
    refit: str | None,
    ridge: float,
    repair: str | None,
) -> None:
    """Check what is to be done after averaging."""
    check_ridge("merge", ridge)
    options = {"refit": (refit, REFITS), "repair": (repair, REPAIRS)}
    for name, (value, known) in options.items():
        if value is not None and value not in known:
            raise ValueError(
                f'merge: {name} is "{value}"{paths.did_you_mean(value, known)}; needed '
                f"is None or one of {', '.join(known)}."
            )
        if batches is None and value in ("least-squares", "rescale"):
            raise ValueError(
                f'merge: {name}="{value}" needs batches and got None; pass calibration '
                "batches."
            )
    if repair == "pooled" and (refit or update_fn is not None):
        other = "refit" if refit else "update_fn"
        raise ValueError(
            f'merge: repair="pooled" and {other} both set running statistics, only one '
            "of them can; leave one out."
        )


def _check_batches(
    batches: Iterable[PyTree] | None, method: str, spec: PermutationSpec | None
) -> None:
    if batches is None:
        if uses_activations(method):
            raise ValueError(
                f"merge: {method} needs batches and got None; pass calibration "
                "batches, or use weight-align or weight-zip."
            )
        if spec is None:
            raise ValueError(
                "merge: without batches the permutation spec cannot be derived; pass "
                "spec=infer_spec(apply_fn, variables, batch), where batch may be "
                "jax.ShapeDtypeStructs."
            )
    elif not isinstance(batches, Iterable):
        raise TypeError(
            f"merge: batches is a {type(batches).__name__}, it must be an iterable of "
            "batches; wrap a single batch in a list."
        )
    elif isinstance(batches, Iterator):
        raise ValueError(
            f"merge: batches is a {type(batches).__name__}, which can be read only "
            "once, and several passes are needed; pass a list, or an object whose "
            "__iter__ starts anew."
        )


def _counted(batches: Iterable[PyTree], stage: str, say: Progress) -> Iterator[PyTree]:
    total = len(batches) if isinstance(batches, Sized) else None
    for done, batch in enumerate(batches):
        say(stage, done, total)
        yield batch


def _silent(stage: str, done: int, total: int | None) -> None:
    """Report nothing."""


def _first(batches: Iterable[PyTree]) -> PyTree:
    for batch in batches:
        return batch
    raise ValueError(
        "merge: there are no batches, at least one is needed; the iterable is empty."
    )
