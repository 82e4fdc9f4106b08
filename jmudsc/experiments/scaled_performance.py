"""Scaled performance: how near a network comes to one trained for its task.

1 is as good as the network that was trained for it, 0 no better than a constant. Losses
of different tasks become comparable by it (Xu et al. 2024, arXiv:2403.01753, section
4.2).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from jmudsc.experiments.tasks import Examples, Task
from jmudsc.types import ApplyFn


def scaled_performance(constant: float, parent: float, loss: float) -> float:
    """Put a loss between that of the best constant and that of the parent.

    Args:
        constant: the loss of the best constant output.
        parent: the loss of the network trained for the task, below `constant`.
        loss: to be scaled.

    Returns:
        `(constant - loss) / (constant - parent)`: at most a little above 1, and below 0
        if a constant is better.

    Raises:
        ValueError: if the parent is no better than the constant.
    """
    if not parent < constant:
        raise ValueError(
            "scaled_performance: expected a parent with a loss below that of the best "
            f"constant, {constant:g}, got {parent:g}. Train the parent longer."
        )
    return (constant - loss) / (constant - parent)


def best_constant(task: Task, examples: Examples) -> Float[np.ndarray, "..."]:
    """Return the one output that has the least loss on some examples.

    Args:
        task: what the examples are of.
        examples: of training images.

    Returns:
        Logits that are the logarithms of how often each answer is right, up to the last
        one that ever is; or the mean of the pictures.
    """
    targets = np.concatenate(examples.targets)
    if task.answers == 0:
        return targets.mean(axis=0, dtype=np.float64).astype(np.float32)
    with np.errstate(divide="ignore"):  # an answer that is never right
        return np.log(np.bincount(targets) / len(targets)).astype(np.float32)


def constant_loss(task: Task, training: Examples, test: Examples) -> float:
    """Return the mean loss, on test examples, of the constant best on training ones."""
    output = jnp.asarray(best_constant(task, training))
    return mean_loss(_constant, output, task, test)


def mean_loss(
    apply_fn: ApplyFn, variables: PyTree, task: Task, examples: Examples
) -> float:
    """Return the mean loss of a network over examples.

    Args:
        apply_fn: `(variables, inputs) -> outputs`, in evaluation mode; hashable.
        variables: of the network.
        task: which is asked of it.
        examples: of the task.

    Returns:
        The mean, in float64.

    Raises:
        ValueError: if it is not finite.
    """
    size, losses = len(examples.inputs[0]), []
    for inputs, targets in zip(examples.inputs, examples.targets, strict=True):
        inputs_full, targets_full = _padded(inputs, size), _padded(targets, size)
        loss = task.objective.loss
        found = _losses(apply_fn, loss, variables, inputs_full, targets_full)
        losses.append(np.asarray(found, np.float64)[: len(inputs)])
    mean = float(np.concatenate(losses).mean())
    if not np.isfinite(mean):
        raise ValueError(
            f"mean_loss: expected a finite loss, got {mean}. Check the variables, and "
            "that every answer occurs in the training images."
        )
    return mean


def _constant(output: Array, inputs: Array) -> Array:
    return jnp.broadcast_to(output, (len(inputs), *output.shape))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(
    apply_fn: ApplyFn, loss: Any, variables: PyTree, inputs: Array, targets: Array
) -> Float[Array, " batch"]:
    return loss(apply_fn(variables, inputs), targets, None)


def _padded(batch: np.ndarray, size: int) -> np.ndarray:
    """Fill a batch up, so that one program serves all."""
    return np.resize(batch, (size, *batch.shape[1:]))
