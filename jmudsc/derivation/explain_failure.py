"""Explain failure: what is probably wrong where a model fails on a batch.

The function is tried on what may have been meant: its arguments the other way round,
one entry of the batch, all entries one by one. What works says what is wrong.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

from jmudsc.types import ApplyFn


def explain_failure(apply_fn: ApplyFn, variables: PyTree, batch: PyTree) -> str | None:
    """Say what is probably wrong with a function, or with what it is given.

    Args:
        apply_fn: a function that fails on `(variables, batch)`.
        variables: arrays or `jax.ShapeDtypeStruct`s.
        batch: likewise.

    Returns:
        A sentence on what was expected, what it is and what to do; None where nothing
        that was tried works.
    """
    if _runs(apply_fn, batch, variables):
        return (
            "apply_fn: expected a function of (variables, batch), got one of (batch, "
            "variables). Swap its arguments."
        )
    if not isinstance(batch, tuple | list | Mapping):
        return None
    is_named = isinstance(batch, Mapping)
    entries = dict(batch) if is_named else dict(enumerate(batch))
    kind = f"a {type(batch).__name__} of {len(entries)}"
    for name, entry in entries.items():
        if _runs(apply_fn, variables, entry):
            return (
                f"apply_fn: expected batches that it takes, got {kind}, while it takes "
                f"entry {name!r} alone. Pass batches [batch[{name!r}] for batch in "
                "batches], or let apply_fn read that entry."
            )
    if _runs(_spread(apply_fn, is_named), variables, batch):
        stars = "**batch" if is_named else "*batch"
        return (
            f"apply_fn: expected a function of (variables, batch), got one that takes "
            f"the {len(entries)} entries of a batch one by one. Pass lambda variables, "
            f"batch: apply_fn(variables, {stars})."
        )
    return None


def _spread(function: Callable[..., PyTree], is_named: bool) -> ApplyFn:
    """Return a function of a batch that gives another its entries one by one."""
    if is_named:
        return lambda variables, batch: function(variables, **batch)
    return lambda variables, batch: function(variables, *batch)


def _runs(function: Callable[..., PyTree], *args: Any) -> bool:
    try:
        jax.eval_shape(function, *args)
    except Exception:  # noqa: BLE001  (the code of a user may raise any)
        return False
    return True
