"""Linen: modules of `flax.linen`, and training states of them."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import PyTree

from jmudsc.adapters.functions import arguments, checked, Functions, modes_of, opposite

# Arguments of `__call__` by which modules tell training and evaluation apart, and their
# values in evaluation.
MODES = {
    "train": False,
    "training": False,
    "is_training": False,
    "deterministic": True,
    "use_running_average": True,
    "eval": True,
    "inference": True,
}
STATISTICS = "batch_stats"


def functions(
    model: Any,
    variables: PyTree | None = None,
    *,
    evaluation: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Functions:
    """Return a linen module with its variables as pure functions.

    Args:
        model: a module; or a `TrainState`, of which `apply_fn`, `params` and, where it
            has them, `batch_stats` are taken.
        variables: the module's, `{"params": ..., "batch_stats": ...}`; None with a
            `TrainState`.
        evaluation: keyword arguments of a call in evaluation. If None, those arguments
            of the module's `__call__` that are in `MODES`. A `TrainState` does not tell
            them: give them if the module has such.
        training: keyword arguments of a call in training; the opposite if None.

    Returns:
        The functions. A batch that is a tuple gives the positional arguments. Other
        collections than `params` and `batch_stats` are held as they are.

    Raises:
        ValueError: if there are no variables, or if they come twice.
    """
    apply, tree = _parts(model, variables)
    if evaluation is None:
        evaluation = _modes_of(model)
    if training is None:
        training = opposite(evaluation)
    own = {key: tree[key] for key in ("params", STATISTICS) if key in tree}
    held = {key: value for key, value in tree.items() if key not in own}

    def apply_fn(variables: PyTree, batch: PyTree) -> PyTree:
        return apply({**held, **variables}, *arguments(batch), **evaluation)

    def update_fn(variables: PyTree, batch: PyTree) -> PyTree:
        _, updated = apply(
            {**held, **variables},
            *arguments(batch),
            **training,
            rngs={"dropout": jax.random.key(0)},
            mutable=[STATISTICS],
        )
        return {**variables, **updated}

    return Functions(own, apply_fn, update_fn if own.get(STATISTICS) else None)


def build(model: Any, variables: PyTree) -> Any:
    """Return a training state with other variables; a linen module itself has none.

    Args:
        model: a `TrainState`; its step and optimizer are left as they are.
        variables: as `functions` returns them, or a merge of such.

    Returns:
        The new state.

    Raises:
        ValueError: if the variables are not those of such a state.
    """
    if isinstance(model, nn.Module):
        raise ValueError(
            "linen.build: expected a TrainState, got a module, which holds no "
            "variables. Call model.apply(variables, batch)."
        )
    _, tree = _parts(model, None)
    whole = checked("linen.build", tree, variables)
    return model.replace(**whole)


def _parts(model: Any, variables: PyTree | None) -> tuple[Any, dict[str, Any]]:
    """Return what is called, and all collections."""
    if isinstance(model, nn.Module) == (variables is None):
        raise ValueError(
            "linen.functions: expected a module with its variables, or a TrainState "
            f"without, got {type(model).__name__} "
            f"{'without' if variables is None else 'with'} variables. Pass "
            "functions(module, variables) or functions(state)."
        )
    if variables is not None:
        return model.apply, dict(variables)
    tree = {"params": model.params}
    if getattr(model, STATISTICS, None):
        tree[STATISTICS] = getattr(model, STATISTICS)
    return model.apply_fn, tree


def _modes_of(model: Any) -> dict[str, Any]:
    """Find the arguments that tell training and evaluation apart."""
    module = getattr(getattr(model, "apply_fn", None), "__self__", model)
    if not isinstance(module, nn.Module):
        return {}
    return modes_of(type(module).__call__, MODES)
