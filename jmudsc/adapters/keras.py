"""Keras: models of Keras 3 on the JAX backend."""

import re
from collections import Counter
from typing import Any

import keras
from jaxtyping import PyTree

from jmudsc.adapters.functions import checked, Functions, nested

_RANDOM = "seed_generator_state"


def functions(model: keras.Model) -> Functions:
    """Return a Keras model as pure functions.

    Args:
        model: any built model: functional, sequential or subclassed.

    Returns:
        The functions. Variables are the model's, by their paths in it:
        `{"conv2d": {"kernel": ...}, "batch_normalization": {"moving_mean": ...}}`.
        Numbers that Keras gave to layers without a name are counted from the start of
        the model, so that models built in another order have the same paths. States of
        random number generators are not among them. `update_fn` is there if some
        variables change in training.

    Raises:
        RuntimeError: if Keras runs on another backend than JAX.
        ValueError: if the model is not built yet.
    """
    _check(model)
    names = _paths_of(model)
    trainable = [names[id(v)] for v in model.trainable_variables]
    others = [names.get(id(v)) for v in model.non_trainable_variables]
    held = {
        number: variable.value
        for number, variable in enumerate(model.non_trainable_variables)
        if others[number] is None
    }

    def run(variables: PyTree, batch: PyTree, training: bool) -> tuple[PyTree, Any]:
        rest = [
            held[number] if path is None else _at(variables, path)
            for number, path in enumerate(others)
        ]
        values = [_at(variables, path) for path in trainable]
        made = model.stateless_call(values, rest, batch, training=training)
        return made[0], made[1]

    def apply_fn(variables: PyTree, batch: PyTree) -> PyTree:
        return run(variables, batch, False)[0]

    def update_fn(variables: PyTree, batch: PyTree) -> PyTree:
        _, after = run(variables, batch, True)
        leaves = {path: _at(variables, path) for path in trainable}
        leaves |= {p: new for p, new in zip(others, after, strict=True) if p}
        return nested(leaves)

    variables = nested({names[id(v)]: v.value for v in _variables_of(model)})
    return Functions(variables, apply_fn, update_fn if any(others) else None)


def build(model: keras.Model, variables: PyTree) -> keras.Model:
    """Return a copy of a Keras model with other variables.

    Args:
        model: of which the architecture is taken; a subclassed one must have
            `get_config`, as `keras.models.clone_model` wants.
        variables: as `functions` returns them, or a merge of such.

    Returns:
        The new model, built.

    Raises:
        RuntimeError: if Keras runs on another backend than JAX.
        ValueError: if the variables are not those of such a model.
    """
    own = functions(model).variables
    whole = checked("keras.build", own, variables)
    names = _paths_of(model)
    copy = keras.models.clone_model(model)
    if not copy.built:
        copy.build_from_config(model.get_build_config())
    for old, new in zip(model.variables, copy.variables, strict=True):
        path = names.get(id(old))
        new.assign(old.value if path is None else _at(whole, path))
    return copy


def _check(model: keras.Model) -> None:
    if keras.backend.backend() != "jax":
        raise RuntimeError(
            "keras.functions: expected Keras on the JAX backend, got "
            f'"{keras.backend.backend()}". Set the environment variable '
            "KERAS_BACKEND=jax before Keras is imported."
        )
    if not model.built:
        raise ValueError(
            f"keras.functions: expected a model that is built, got {model.name}, which "
            "has no variables yet. Call it on a batch first."
        )


def _variables_of(model: keras.Model) -> list[Any]:
    return [v for v in model.variables if not v.path.endswith(_RANDOM)]


def _paths_of(model: keras.Model) -> dict[int, str]:
    """Return the path of every variable, as if the model were the first one built."""
    automatic = {
        layer.name
        for layer in model._flatten_layers()
        if re.fullmatch(rf"{_snake(type(layer).__name__)}(_\d+)?", layer.name)
    }
    counted: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    paths = {}
    for variable in _variables_of(model):
        names = variable.path.split("/")
        names = names[1:] if names[0] == model.name else names
        for name in names[:-1]:
            if name not in renamed:
                renamed[name] = _numbered(name, counted) if name in automatic else name
        *layers, own = names
        paths[id(variable)] = "/".join([*(renamed[name] for name in layers), own])
    return paths


def _numbered(name: str, counted: Counter[str]) -> str:
    base = re.sub(r"_\d+$", "", name)
    counted[base] += 1
    return base if counted[base] == 1 else f"{base}_{counted[base] - 1}"


def _snake(name: str) -> str:
    name = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", re.sub(r"\W+", "", name))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _at(tree: PyTree, path: str) -> Any:
    for name in path.split("/"):
        tree = tree[name]
    return tree
