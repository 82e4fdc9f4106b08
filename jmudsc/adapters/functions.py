"""Functions: what a merge takes of a model."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.types import ApplyFn, UpdateFn

# (model, batch) -> outputs
Call = Callable[[Any, PyTree], PyTree]


class Functions(NamedTuple):
    """A model as pure functions; unpacks as `variables, apply_fn, update_fn`.

    Attributes:
        variables: a tree of plain dictionaries of arrays: all that a merge may change.
        apply_fn: `(variables, batch) -> outputs`, in evaluation mode.
        update_fn: `(variables, batch) -> variables` with running statistics updated, as
            training does; None if the model has none.
    """

    variables: PyTree
    apply_fn: ApplyFn
    update_fn: UpdateFn | None


def modes_of(function: Callable[..., Any], modes: Mapping[str, Any]) -> dict[str, Any]:
    """Return those arguments of a function that tell training and evaluation apart.

    Args:
        function: what is called.
        modes: argument -> its value in evaluation, of all that a library is known for.
    """
    names = inspect.signature(function).parameters
    return {name: value for name, value in modes.items() if name in names}


def opposite(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call in training, from those of one in evaluation."""
    return {name: not value for name, value in evaluation.items()}


def arguments(batch: PyTree) -> tuple:
    """Return the positional arguments that a batch gives: a tuple gives several."""
    return batch if isinstance(batch, tuple) else (batch,)


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree of dictionaries with the leaves at their paths.

    Args:
        leaves: `"/"`-joined path -> leaf.

    Example:
        >>> nested({"dense/kernel": 1, "dense/bias": 2})
        {'dense': {'kernel': 1, 'bias': 2}}
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *names, last = path.split("/")
        inner = tree
        for name in names:
            inner = inner.setdefault(name, {})
        inner[last] = leaf
    return tree


def checked(where: str, wanted: PyTree, given: PyTree) -> PyTree:
    """Return variables, once it is known that they are those of a model.

    Args:
        where: the caller, named in the error.
        wanted: variables of the model.
        given: those to put into it; their paths and shapes must be the same.

    Returns:
        A tree of the structure of `wanted`.

    Raises:
        ValueError: listing the leaves that are missing, unknown or of another shape.
    """
    has, want = paths.flatten(given), paths.flatten(wanted)
    wrong = [
        f'"{path}" is missing{paths.did_you_mean(path, has.keys() - want.keys())}'
        for path in want.keys() - has.keys()
    ]
    wrong += [
        f'"{path}" is not in the model{paths.did_you_mean(path, want)}'
        for path in has.keys() - want.keys()
    ]
    wrong += [
        f'"{path}" has shape {list(has[path].shape)}, '
        f"in the model {list(want[path].shape)}"
        for path in want.keys() & has.keys()
        if has[path].shape != want[path].shape
    ]
    if wrong:
        raise ValueError(
            f"{where}: expected the variables of this model, got others:\n"
            f"{paths.listed(sorted(wrong))}\nPass variables that `functions` made of a "
            "model of this architecture, or what a merge of them returned."
        )
    return paths.unflatten(wanted, has)
