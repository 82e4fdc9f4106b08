"""Train the parents of the shipped experiments: embed images near their class vector.

Every class has a fixed random unit vector, and a network is trained to point at the one
of the image's class among those of its own task. Networks of different tasks thus share
one output space, and can be merged whole (as with the text vectors of ZipIt, Stoica et
al. 2024, arXiv:2305.03053, section 5.1).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from jmudsc.experiments.augment import AUGMENTS
from jmudsc.experiments.datasets import Split
from jmudsc.experiments.models import MLP, ResNet20
from jmudsc.experiments.training_state import keep_state, last_state
from jmudsc.paths import did_you_mean
from jmudsc.progress import Progress

LOGIT_SCALE = 5.0

Images = Float[Array | np.ndarray, "batch height width channels"]


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained, by stochastic gradient descent.

    Attributes:
        epochs: passes over the training images, at least 1.
        batch_size: images of a step; what is left over of an epoch is not used in it.
        learning_rate: peak of a schedule that climbs to it and falls to 0 linearly.
        warmup: share of all steps before the peak, in [0, 1).
        momentum: heavy-ball momentum.
        weight_decay: times each parameter, added to its gradient.
        logit_scale: multiplies the cosines of embeddings and class vectors.
        augment: how images are changed at random: `none`, `crop`, `flip`, `crop-flip`.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    logit_scale: float = LOGIT_SCALE
    augment: str = "none"


@dataclass(frozen=True)
class Objective:
    """What a network is trained for.

    Objectives whose functions are the same functions share compilations.

    Attributes:
        examples: `(key, images, labels) -> (inputs, targets)`: what of labelled images
            the network is given and what it is to say.
        loss: `(outputs, targets, constants) -> losses`, one for each example.
    """

    examples: Callable[[PRNGKeyArray, Array, Array], tuple[Array, Array]]
    loss: Callable[[Array, Array, Any], Float[Array, " batch"]]


@dataclass(frozen=True)
class Setup:
    """A network and how it is trained.

    Attributes:
        model: a linen module called as `model(images, train)`.
        config: its recipe.
    """

    model: nn.Module
    config: TrainConfig


DEMO_MLP = Setup(
    MLP((256, 256, 256), 64),
    TrainConfig(epochs=100, batch_size=100, learning_rate=0.1, weight_decay=1e-3),
)
DEMO_RESNET20 = Setup(
    ResNet20(1, 512),
    TrainConfig(
        epochs=20, batch_size=100, learning_rate=0.2, weight_decay=2e-3, logit_scale=8.0
    ),
)


def class_vectors(
    key: PRNGKeyArray, classes: int, dimension: int
) -> Float[Array, "classes dimension"]:
    """Draw a random unit vector for every class."""
    return _unit(jax.random.normal(key, (classes, dimension)))


def cosines(
    embedding: Float[Array, "batch dimension"],
    vectors: Float[Array, "classes dimension"],
) -> Float[Array, "batch classes"]:
    """Compare embeddings with class vectors: in [-1, 1], larger is more alike."""
    return _unit(embedding) @ vectors.T


def train(
    model: nn.Module,
    variables: PyTree,
    split: Split,
    vectors: Float[Array, "all_classes dimension"],
    classes: Sequence[int],
    *,
    key: PRNGKeyArray,
    config: TrainConfig,
    folder: Path | None = None,
    every: int = 1,
    progress: Progress | None = None,
) -> PyTree:
    """Train a network to tell the classes of one task apart.

    Minimises the cross-entropy of the scaled cosines to the task's class vectors.
    Networks of one model, config and number of classes and steps share a compilation.

    Args:
        model: a linen module called as `model(images, train)`.
        variables: where training starts.
        split: images of the classes of the task, and no others.
        vectors: a unit vector for every class of every task.
        classes: the classes of the task.
        key: decides the order of the images and their augmentation.
        config: the recipe.
        folder: where to keep the state of the training; if it holds one, training goes
            on from there and gives the same bits as if never stopped. Not kept, if
            None.
        every: after how many epochs to keep it.
        progress: called after every epoch with the stage, epochs done, and all epochs.

    Returns:
        The trained variables.

    Raises:
        ValueError: if the split has images of other classes, or too few for one batch,
            a class has no vector, the config is out of range, or the folder holds the
            state of another training.
    """
    _check(split, len(vectors), classes)
    own = np.unique(classes)
    targets = np.searchsorted(own, split.labels).astype(np.int32)
    return descend(
        model,
        variables,
        split,
        _near_vectors(config.logit_scale),
        key=key,
        config=config,
        targets=targets,
        constants=vectors[own],
        what=str(own),
        folder=folder,
        every=every,
        progress=progress,
    )


def descend(
    model: nn.Module,
    variables: PyTree,
    split: Split,
    objective: Objective,
    *,
    key: PRNGKeyArray,
    config: TrainConfig,
    targets: Int[np.ndarray, " examples"] | None = None,
    constants: PyTree = None,
    what: str,
    folder: Path | None = None,
    every: int = 1,
    progress: Progress | None = None,
) -> PyTree:
    """Minimise the mean loss of an objective by stochastic gradient descent.

    Args:
        model: a linen module called as `model(inputs, train)`.
        variables: where training starts.
        split: labelled images.
        objective: what of them the network is given, and what it is to say. Images are
            augmented before, as the config says.
        key: decides the order of the images, their augmentation, and what is random in
            the objective.
        config: the recipe; `logit_scale` is left to the objective.
        targets: labels to use in the place of those of the split.
        constants: what else the loss needs, arrays.
        what: names the objective, so that another training is not taken for this one.
        folder: as for `train`, and so are the others.
        every: as for `train`.
        progress: as for `train`.

    Returns:
        The trained variables.

    Raises:
        ValueError: if the images are too few for one batch, the config is out of range,
            or the folder holds the state of another training.
    """
    _check_config(split, config)
    labels = split.labels if targets is None else targets
    steps = len(split) // config.batch_size
    momentum = _optimizer(config, steps).init(variables["params"])
    done, state = 0, (variables, momentum)
    what = _decided_by(model, config, what, key, split)
    if folder is not None:
        done, state = last_state(folder, state, what)
    for epoch in range(done, config.epochs):
        epoch_key = jax.random.fold_in(key, epoch)
        order = jax.random.permutation(epoch_key, len(split))
        chosen = np.asarray(order)[: steps * config.batch_size].reshape(steps, -1)
        total = 0.0
        for number, batch in enumerate(chosen):
            *state, loss = _step(
                model,
                config,
                objective,
                steps,
                *state,
                jax.random.fold_in(epoch_key, number),
                split.images[batch],
                labels[batch],
                constants,
            )
            total += loss
        if progress is not None:
            mean = float(total) / steps
            progress(f"training (loss {mean:.4f})", epoch + 1, config.epochs)
        if folder is not None and (epoch + 1) % every == 0:
            keep_state(folder, epoch + 1, tuple(state), what)
    return state[0]


@functools.cache
def _near_vectors(logit_scale: float) -> Objective:
    """Return the cross-entropy of the scaled cosines to the vectors of classes."""

    def loss(
        embedding: Float[Array, "batch dimension"],
        targets: Int[Array, " batch"],
        vectors: Float[Array, "classes dimension"],
    ) -> Float[Array, " batch"]:
        logits = logit_scale * cosines(embedding, vectors)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets)

    return Objective(lambda key, images, labels: (images, labels), loss)


def _decided_by(
    model: nn.Module,
    config: TrainConfig,
    objective: str,
    key: PRNGKeyArray,
    split: Split,
) -> str:
    """Write down what decides a training, as far as it can be compared quickly."""
    bits = jax.random.key_data(key).tolist()
    return f"{model} {config} {objective} {bits} {split.labels.tolist()}"


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _step(
    model: nn.Module,
    config: TrainConfig,
    objective: Objective,
    steps: int,
    variables: PyTree,
    momentum: PyTree,
    key: PRNGKeyArray,
    images: Images,
    labels: Int[Array, " batch"],
    constants: PyTree,
) -> tuple[PyTree, PyTree, Float[Array, ""]]:
    changed = AUGMENTS[config.augment](key, jnp.asarray(images))
    inputs, targets = objective.examples(jax.random.fold_in(key, 0), changed, labels)

    def loss_of(params: PyTree) -> tuple[Array, Any]:
        outputs, updated = model.apply(
            {**variables, "params": params},
            inputs,
            train=True,
            mutable=["batch_stats"],
        )
        return objective.loss(outputs, targets, constants).mean(), updated

    params = variables["params"]
    (loss, updated), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    change, momentum = _optimizer(config, steps).update(grads, momentum, params)
    params = optax.apply_updates(params, change)
    return {**variables, **updated, "params": params}, momentum, loss


def _optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    total = config.epochs * steps
    peak = math.ceil(config.warmup * total)
    climb = optax.linear_schedule(0.0, config.learning_rate, peak)
    fall = optax.linear_schedule(config.learning_rate, 0.0, total - peak)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(optax.join_schedules([climb, fall], [peak]), config.momentum),
    )


def _unit(vectors: Float[Array, "n dimension"]) -> Float[Array, "n dimension"]:
    squares = (vectors**2).sum(axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(squares + 1e-12)  # finite for a vector of zeros


def _check(split: Split, vectors: int, classes: Sequence[int]) -> None:
    strays = sorted(set(split.labels.tolist()) - set(classes))
    if strays:
        raise ValueError(
            f"train: the split has images of the classes {strays}, the task has "
            f"{sorted(classes)} only; cut the split with datasets.only."
        )
    absent = [c for c in sorted(set(classes)) if not 0 <= c < vectors]
    if absent or not classes:
        raise ValueError(
            f"train: of {len(classes)} classes {absent} have no vector, there must be "
            f"one for each; choose one or more from 0..{vectors - 1}."
        )


def _check_config(split: Split, config: TrainConfig) -> None:
    if config.epochs < 1 or not 0 <= config.warmup < 1:
        raise ValueError(
            f"train: {config.epochs} epochs with warmup {config.warmup}, at least 1 "
            "and a share in [0, 1) are needed; change the config."
        )
    if config.augment not in AUGMENTS:
        hint = did_you_mean(config.augment, AUGMENTS)
        raise ValueError(
            f'train: augment is "{config.augment}", needed is one of '
            f"{', '.join(AUGMENTS)}; change the config{hint}"
        )
    if not 1 <= config.batch_size <= len(split):
        raise ValueError(
            f"train: {len(split)} images do not fill one batch of {config.batch_size}; "
            "choose a batch_size from 1 to the number of images."
        )
