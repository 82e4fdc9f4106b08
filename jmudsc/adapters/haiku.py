"""Haiku: functions transformed by `haiku.transform` and `transform_with_state`."""

import inspect
from collections.abc import Mapping
from typing import Any

import haiku as hk
import jax
from jaxtyping import PyTree

from jmudsc.adapters.functions import arguments, Functions, modes_of, opposite

# Arguments by which functions tell training and evaluation apart, and their values in
# evaluation.
MODES = {"is_training": False, "train": False, "training": False, "test": True}


def functions(
    transformed: hk.Transformed | hk.TransformedWithState,
    params: PyTree,
    state: PyTree | None = None,
    *,
    evaluation: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Functions:
    """Return a transformed Haiku function as pure functions.

    Args:
        transformed: what `hk.transform` or `hk.transform_with_state` returned, also
            `without_apply_rng`.
        params: its parameters.
        state: its state; None without.
        evaluation: keyword arguments of a call in evaluation, `is_training=False` say;
            those arguments of the function that are in `MODES` if None.
        training: keyword arguments of a call in training; the opposite if None.

    Returns:
        The functions. Variables are `{"params": params}`, and `{"state": state}` with
        one. A batch that is a tuple gives the positional arguments. In training, random
        choices come from one fixed key.
    """
    apply = transformed.apply
    has_key = "rng" in inspect.signature(apply).parameters
    if evaluation is None:
        evaluation = modes_of(inspect.unwrap(apply), MODES)
    if training is None:
        training = opposite(evaluation)

    def run(variables: PyTree, batch: PyTree, key: Any, options: Any) -> Any:
        trees = [variables["params"]]
        trees += [] if state is None else [variables["state"]]
        keys = [key] if has_key else []
        return apply(*trees, *keys, *arguments(batch), **options)

    def apply_fn(variables: PyTree, batch: PyTree) -> PyTree:
        out = run(variables, batch, None, evaluation)
        return out if state is None else out[0]

    def update_fn(variables: PyTree, batch: PyTree) -> PyTree:
        _, updated = run(variables, batch, jax.random.key(0), training)
        return {**variables, "state": updated}

    if state is None:
        return Functions({"params": params}, apply_fn, None)
    variables = {"params": params, "state": state}
    return Functions(variables, apply_fn, update_fn if state else None)
