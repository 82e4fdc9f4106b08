"""NNX: modules of `flax.nnx`."""

from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import PyTree

from jmudsc.adapters.functions import Call, checked, Functions

Model = TypeVar("Model", bound=nnx.Module)


def functions(model: nnx.Module, call: Call | None = None) -> Functions:
    """Return an NNX model as pure functions.

    Args:
        model: any module; it is left as it is. What training alone needs, dropout and
            noise, is off in the functions.
        call: `(model, batch) -> outputs`, if that is not `model(batch)`.

    Returns:
        The functions. Variables are the model's state as plain dictionaries, as
        `nnx.to_pure_dict` makes them, without the states of random number generators
        and without caches of decoding. `update_fn` is there if it has `nnx.BatchStat`.
    """
    call = _called if call is None else call
    graph, state, rest = _split(_in_evaluation(model))
    _, moving, _ = nnx.split(model, nnx.BatchStat, ...)

    def apply_fn(variables: PyTree, batch: PyTree) -> PyTree:
        return call(_merged(graph, state, rest, variables), batch)

    def update_fn(variables: PyTree, batch: PyTree) -> PyTree:
        trained = _merged(graph, state, rest, variables)
        trained.set_attributes(use_running_average=False, raise_if_not_found=False)
        call(trained, batch)
        return nnx.to_pure_dict(_split(trained)[1])

    has_statistics = bool(jax.tree.leaves(moving))
    variables = nnx.to_pure_dict(state)
    return Functions(variables, apply_fn, update_fn if has_statistics else None)


def build(model: Model, variables: PyTree) -> Model:
    """Return a copy of an NNX model with other variables.

    Args:
        model: of which the architecture and the random states are taken.
        variables: as `functions` returns them, or a merge of such.

    Returns:
        The new model, in the mode that `model` is in.

    Raises:
        ValueError: if the variables are not those of such a model.
    """
    graph, state, rest = _split(model)
    whole = checked("nnx.build", nnx.to_pure_dict(state), variables)
    return _merged(graph, state, rest, whole)


def _called(model: Any, batch: PyTree) -> PyTree:
    return model(batch)


def _in_evaluation(model: nnx.Module) -> nnx.Module:
    copy = nnx.clone(model)
    copy.eval()
    return copy


def _split(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Return the graph, what a merge may change, and what it may not."""
    graph, rest, state = nnx.split(model, nnx.Any(nnx.RngState, nnx.Cache), ...)
    return graph, state, rest


def _merged(graph: Any, state: Any, rest: Any, variables: PyTree) -> Any:
    """Put a model together of variables of its own, which a trace may change."""
    state, rest = jax.tree.map(lambda x: x, (state, rest))
    nnx.replace_by_pure_dict(state, variables)
    return nnx.merge(graph, state, rest)
