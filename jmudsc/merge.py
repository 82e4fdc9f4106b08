"""Merge: the whole way from models and batches to one network, in one call."""

import logging
from collections.abc import Iterable, Iterator, Sequence, Sized

import jax
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.batch_stats import reset_batch_stats, UpdateFn
from jmudsc.check import check_spec
from jmudsc.combine import combine, shares_of
from jmudsc.derive import infer_spec
from jmudsc.match import check_method, match, Progress, uses_activations
from jmudsc.moments import collect
from jmudsc.result import MergeResult
from jmudsc.spec import PermutationSpec
from jmudsc.trace import ApplyFn
from jmudsc.variables import check_covers, check_finite, check_same

_log = logging.getLogger(__name__)


def merge(
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    batches: Iterable[PyTree] | None,
    *,
    method: str = "mudsc-zip",
    alpha: float = 0.5,
    key: jax.Array,
    spec: PermutationSpec | None = None,
    weights: Sequence[float] | None = None,
    update_fn: UpdateFn | None = None,
    check: bool = True,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge networks trained apart into one that does all their tasks.

    Derives the permutation spec and checks it on the first model, gathers activation
    statistics, matches the units, averages them, and resets running statistics.

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
        weights: the share of each model in the average; None for equal shares.
        update_fn: `(variables, batch) -> variables` as training updates running
            statistics; given, they are reset over `batches`.
        check: whether to check the spec on the first model.
        progress: called with the stage, how much of it is done, and out of how much
            (None where that is not known).

    Returns:
        The merged variables with spec, assignment, history and what decided the merge.

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
    say = progress or _silent
    first = None if batches is None else _first(batches)
    if spec is None:
        say("deriving the spec", 0, 1)
        spec = infer_spec(apply_fn, models[0], first)
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
    if update_fn is not None and batches is not None:
        seen = _counted(batches, "resetting statistics", say)
        merged = reset_batch_stats(update_fn, merged, seen)
    elif spec.statistics:
        _log.warning(
            "merge: %d running statistics were averaged, not reset; pass update_fn and "
            "batches, or call reset_batch_stats.",
            len(spec.statistics),
        )
    recipe = {"method": method, "alpha": alpha, "weights": list(shares)}
    return MergeResult(merged, spec, found.assignment, found.history, recipe)


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
