"""Equinox: modules of `equinox`, with and without a state."""

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.adapters.functions import checked, Functions, nested

Model = TypeVar("Model")
MODEL, STATE = "model", "state"


def functions(
    model: eqx.Module,
    state: eqx.nn.State | None = None,
    *,
    per_sample: bool = True,
    call: Callable[..., PyTree] | None = None,
) -> Functions:
    """Return an Equinox model as pure functions.

    Args:
        model: any module.
        state: its state, if it has one, from `eqx.nn.make_with_state`.
        per_sample: whether the model takes one sample, as layers of Equinox do, so that
            it is mapped over the leading axis of a batch (called `"batch"`, as
            BatchNorm wants).
        call: `(model, x) -> outputs`, or `(model, x, state) -> (outputs, state)`, if
            that is not `model(x)` or `model(x, state)`; of one sample if `per_sample`.

    Returns:
        The functions. Variables are `{"model": ...}`, with `"state"` beside it if there
        is one: dictionaries of the arrays of floats by where they are in the model,
        `model/layers/0/weight`. Other arrays (tables of indices, masks) are constants.
        `update_fn` is there if the model has a state.
    """
    run = _Run(per_sample, call, state is not None)
    variables, held = _opened(model, state)

    def apply_fn(variables: PyTree, batch: PyTree) -> PyTree:
        known, moving = _closed(variables, held)
        return run(eqx.nn.inference_mode(known), batch, moving)[0]

    def update_fn(variables: PyTree, batch: PyTree) -> PyTree:
        known, moving = _closed(variables, held)
        known = eqx.nn.inference_mode(known, False)
        known = _without_dropout(known)
        return _opened(known, run(known, batch, moving)[1])[0]

    return Functions(variables, apply_fn, update_fn if state is not None else None)


def build(
    model: Model, variables: PyTree, state: eqx.nn.State | None = None
) -> Model | tuple[Model, eqx.nn.State]:
    """Return an Equinox model with other variables.

    Args:
        model: of which the architecture is taken.
        variables: as `functions` returns them, or a merge of such.
        state: its state, if it has one.

    Returns:
        The new model; with its state if there is one.

    Raises:
        ValueError: if the variables are not those of such a model.
    """
    own, held = _opened(model, state)
    built, moving = _closed(checked("equinox.build", own, variables), held)
    return built if state is None else (built, moving)


class _Run(eqx.Module):
    """How a model is called on a batch."""

    per_sample: bool
    call: Callable[..., PyTree] | None
    has_state: bool

    def __call__(self, model: Any, batch: PyTree, state: Any) -> tuple[PyTree, Any]:
        if not self.per_sample:
            return self.once(model, batch, state)
        return jax.vmap(
            lambda x: self.once(model, x, state),
            axis_name="batch",
            out_axes=(0, None),
        )(batch)

    def once(self, model: Any, x: PyTree, state: Any) -> tuple[PyTree, Any]:
        call = (lambda model, *args: model(*args)) if self.call is None else self.call
        return call(model, x, state) if self.has_state else (call(model, x), None)


def _opened(model: Any, state: Any) -> tuple[dict[str, Any], Any]:
    """Return variables, and the rest of a model and a state."""
    parts = {MODEL: model} if state is None else {MODEL: model, STATE: state}
    arrays, held = eqx.partition(parts, eqx.is_inexact_array)
    variables = {key: nested(paths.flatten(tree)) for key, tree in arrays.items()}
    return variables, (arrays, held)


def _closed(variables: PyTree, opened: Any) -> tuple[Any, Any]:
    """Return the model and the state that have these variables."""
    arrays, held = opened
    filled = {
        key: paths.unflatten(tree, paths.flatten(variables[key]))
        for key, tree in arrays.items()
    }
    parts = eqx.combine(filled, held)
    return parts[MODEL], parts.get(STATE)


def _without_dropout(model: Any) -> Any:
    """Turn off dropout, which would want a random key."""

    def is_dropout(x: Any) -> bool:
        return isinstance(x, eqx.nn.Dropout)

    return jax.tree.map(
        lambda x: eqx.nn.inference_mode(x) if is_dropout(x) else x,
        model,
        is_leaf=is_dropout,
    )
