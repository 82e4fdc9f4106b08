"""Fisher: the mean weighted by how much each model's output depends on each entry."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import PyTree

from jmudsc import paths
from jmudsc.finetunes.piece import Piece
from jmudsc.finetunes.task_batches import examples_in
from jmudsc.types import ApplyFn

# `(leaves, batch) -> sums of squares`, all by path.
Squares = Callable[[dict[str, Array], PyTree], dict[str, Array]]


def fisher(piece: Piece) -> np.ndarray:
    """Weight each entry by its Fisher information (Matena & Raffel, arXiv:2111.09832).

    That of a model is divided by its norm over the whole tree, and at least `floor`.
    """
    floor = piece.options["floor"]
    shares = [each + floor for each in piece.evidence["fisher"]]
    total = functools.reduce(np.add, shares)
    pairs = zip(shares, piece.models, strict=True)
    return functools.reduce(np.add, [share / total * model for share, model in pairs])


def gradient_squares(
    where: str,
    apply_fn: ApplyFn,
    models: Sequence[PyTree],
    tasks: Sequence[Iterable[PyTree]],
) -> list[dict[str, np.ndarray]]:
    """Return the mean square of the gradient of the log-likelihood, entry by entry.

    Over examples, and over classes by the probability that the model itself gives
    them. It costs a backward pass for every example and class.

    Args:
        where: the caller, named in errors.
        apply_fn: `(variables, batch) -> logits`, (examples, classes).
        models: the variables of each model.
        tasks: the batches of each model's task.

    Returns:
        For each model path -> float64, for leaves of real numbers.

    Raises:
        ValueError: if the outputs are no logits.
    """
    squares = _squares_fn(where, apply_fn, models[0])
    found = []
    for model, batches in zip(models, tasks, strict=True):
        leaves = {path: jnp.asarray(x) for path, x in paths.flatten(model).items()}
        total: dict[str, np.ndarray] = {}
        examples = 0
        for batch in batches:
            examples += examples_in(batch)
            own = squares(leaves, jax.tree.map(jnp.asarray, batch))
            for path, leaf in own.items():
                total[path] = total.get(path, 0.0) + np.asarray(leaf, np.float64)
        found.append({path: leaf / examples for path, leaf in total.items()})
    return found


def _squares_fn(where: str, apply_fn: ApplyFn, like: PyTree) -> Squares:
    """Return what sums the squares over a batch, compiled once for all models."""

    def log_probabilities(leaves: dict[str, Array], example: PyTree) -> Array:
        tree = paths.unflatten(like, leaves)
        out = apply_fn(tree, jax.tree.map(lambda x: x[None], example))
        if not hasattr(out, "ndim") or out.ndim != 2:
            shape = jax.tree.map(jnp.shape, out)
            raise ValueError(
                f"{where}: expected outputs of shape (examples, classes) for fisher, "
                f"got {shape}. Pass an apply_fn that returns logits."
            )
        return jax.nn.log_softmax(out[0].astype(jnp.float32))

    def squares(leaves: dict[str, Array], batch: PyTree) -> dict[str, Array]:
        is_real = lambda x: jnp.issubdtype(x.dtype, jnp.floating)
        moving = {path: leaf for path, leaf in leaves.items() if is_real(leaf)}
        zeros = {path: jnp.zeros(x.shape, jnp.float32) for path, x in moving.items()}

        def with_example(total: dict[str, Array], example: PyTree) -> tuple[Any, None]:
            found, back = jax.vjp(
                lambda own: log_probabilities(leaves | own, example), moving
            )

            def with_class(total: dict[str, Array], number: Array) -> tuple[Any, None]:
                (gradient,) = back(jax.nn.one_hot(number, len(found)))
                chance = jnp.exp(found[number])
                add = lambda t, g: t + chance * jnp.square(g.astype(jnp.float32))
                return jax.tree.map(add, total, gradient), None

            own = jax.lax.scan(with_class, zeros, jnp.arange(len(found)))[0]
            return jax.tree.map(jnp.add, total, own), None

        return jax.lax.scan(with_example, zeros, batch)[0]

    return jax.jit(squares)
