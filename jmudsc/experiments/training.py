"""Training: fit a network of an experiment to a goal by stochastic gradient descent.

The goal of most is to embed images near the vector of their class: every class has a
fixed random unit vector, and a network is trained to point at the one of the image's
class among those of its own task. Networks of different tasks thus share one output
space, and can be merged whole (as with the text vectors of ZipIt, Stoica et al. 2024,
arXiv:2305.03053, section 5.1).
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from jmudsc.experiments.training_state import keep_state, Keeping, last_state
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
        optimizer: `sgd`; or `adam`, whose momentum is 0.9 and which takes the weight
            decay off the parameters themselves (AdamW).
    """

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    logit_scale: float = LOGIT_SCALE
    augment: str = "none"
    optimizer: str = "sgd"


@dataclass(frozen=True)
class NetworkSetup:
    """A network and how it is trained.

    Attributes:
        model: a linen module called as `model(images, train)`.
        config: how it is trained.
    """

    model: nn.Module
    config: TrainConfig


@dataclass(frozen=True)
class Objective:
    """What is made of images for a network to learn, and how its answers are judged.

    Objectives whose functions are the same functions share compilations.

    Attributes:
        examples: `(key, images, classes) -> (inputs, targets)`: what the network is
            given of images, and what it is to say, from the class of each.
        loss: `(outputs, targets, constants) -> losses`, one for each example.
    """

    examples: Callable[[PRNGKeyArray, Array, Any], tuple[Array, Array]]
    loss: Callable[[Array, Array, Any], Float[Array, " batch"]]


@dataclass(frozen=True, eq=False)
class Goal:
    """What a network is to learn from which images.

    Attributes:
        name: tells it from other goals on the same images.
        objective: what is made of the images. They are augmented before.
        split: the images, with their classes.
        classes: of each image, as the objective counts them.
        constants: what else the loss needs, arrays.
    """

    name: str
    objective: Objective
    split: Split
    classes: Int[np.ndarray, " examples"]
    constants: PyTree = None


DEMO_MLP = NetworkSetup(
    MLP((256, 256, 256), 64),
    TrainConfig(epochs=100, batch_size=100, learning_rate=0.1, weight_decay=1e-3),
)
DEMO_RESNET20 = NetworkSetup(
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


def telling_apart(
    classes: Sequence[int],
    split: Split,
    vectors: Float[Array, "all_classes dimension"],
    logit_scale: float,
) -> Goal:
    """Return the goal of telling the classes of one task apart.

    Its loss is the cross-entropy of the scaled cosines to the task's class vectors.
    Networks of one setup and number of classes and steps share a compilation.

    Args:
        classes: the classes of the task.
        split: images of these classes, and no others.
        vectors: a unit vector for every class of every task.
        logit_scale: multiplies the cosines, as `TrainConfig.logit_scale` says.

    Returns:
        The goal.

    Raises:
        ValueError: if the split has images of other classes, or a class has no vector.
    """
    _check_classes(classes, split, len(vectors))
    own = np.unique(classes)
    return Goal(
        name=str(own),
        objective=_near_vectors(logit_scale),
        split=split,
        classes=np.searchsorted(own, split.classes).astype(np.int32),
        constants=vectors[own],
    )


def train(
    setup: NetworkSetup,
    variables: PyTree,
    goal: Goal,
    *,
    key: PRNGKeyArray,
    keeping: Keeping | None = None,
    progress: Progress | None = None,
) -> PyTree:
    """Minimize the mean loss of a goal by stochastic gradient descent.

    Args:
        setup: the network and how it is trained.
        variables: where training starts.
        goal: what the network is to learn.
        key: decides the order of the images, their augmentation, and what is random in
            the objective.
        keeping: where the state of the training is kept; if there is one, training goes
            on from there and gives the same bits as if it had never stopped. Not kept,
            if None.
        progress: called after every epoch with the stage, epochs done, and all epochs.

    Returns:
        The trained variables.

    Raises:
        ValueError: if the images are too few for one batch, the config is out of range,
            or what is kept is the state of another training.
    """
    config, split = setup.config, goal.split
    _check_config(split, config)
    steps = len(split) // config.batch_size
    program = _Program(setup, goal.objective, steps)
    done, state = 0, (variables, _optimizer(config, steps).init(variables["params"]))
    decided_by = _decided_by(setup, goal, key)
    if keeping is not None:
        done, state = last_state(keeping.folder, state, decided_by)
    for epoch in range(done, config.epochs):
        state, loss = _epoch(program, state, goal, jax.random.fold_in(key, epoch))
        if progress is not None:
            progress(f"training (loss {loss:.4f})", epoch + 1, config.epochs)
        if keeping is not None and (epoch + 1) % keeping.every == 0:
            keep_state(keeping.folder, epoch + 1, state, decided_by)
    return state[0]


@dataclass(frozen=True)
class _Program:
    """What a step of training is compiled for."""

    setup: NetworkSetup
    objective: Objective
    steps: int  # of an epoch


# Variables, and the state of the optimizer.
_State = tuple[PyTree, PyTree]


def _epoch(
    program: _Program, state: _State, goal: Goal, key: PRNGKeyArray
) -> tuple[_State, float]:
    """Go once through the images in random order; return the mean loss too."""
    steps, split = program.steps, goal.split
    order = np.asarray(jax.random.permutation(key, len(split)))
    chosen = order[: steps * program.setup.config.batch_size].reshape(steps, -1)
    total = 0.0
    for number, batch in enumerate(chosen):
        step_key = jax.random.fold_in(key, number)
        images, classes = split.images[batch], goal.classes[batch]
        state, loss = _step(program, state, step_key, images, classes, goal.constants)
        total += loss
    return state, float(total) / steps


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

    return Objective(lambda key, images, classes: (images, classes), loss)


def _decided_by(setup: NetworkSetup, goal: Goal, key: PRNGKeyArray) -> str:
    """Write down what decides a training, as far as it can be compared quickly."""
    bits = jax.random.key_data(key).tolist()
    classes = goal.split.classes.tolist()
    return f"{setup.model} {setup.config} {goal.name} {bits} {classes}"


@functools.partial(jax.jit, static_argnums=0)
def _step(
    program: _Program,
    state: _State,
    key: PRNGKeyArray,
    images: Images,
    classes: Int[Array | np.ndarray, " batch"],
    constants: PyTree,
) -> tuple[_State, Float[Array, ""]]:
    model, config = program.setup.model, program.setup.config
    objective, (variables, momentum) = program.objective, state
    changed = AUGMENTS[config.augment](key, jnp.asarray(images))
    inputs, targets = objective.examples(jax.random.fold_in(key, 0), changed, classes)

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
    optimizer = _optimizer(config, program.steps)
    change, momentum = optimizer.update(grads, momentum, params)
    params = optax.apply_updates(params, change)
    return ({**variables, **updated, "params": params}, momentum), loss


def _optimizer(config: TrainConfig, steps: int) -> optax.GradientTransformation:
    total = config.epochs * steps
    peak = math.ceil(config.warmup * total)
    climb = optax.linear_schedule(0.0, config.learning_rate, peak)
    fall = optax.linear_schedule(config.learning_rate, 0.0, total - peak)
    return OPTIMIZERS[config.optimizer](
        config, optax.join_schedules([climb, fall], [peak])
    )


def _sgd(config: TrainConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(decay, optax.sgd(rate, config.momentum))


def _adam(config: TrainConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=config.weight_decay)


# By the names that configs use.
OPTIMIZERS = {"sgd": _sgd, "adam": _adam}


def _unit(vectors: Float[Array, "n dimension"]) -> Float[Array, "n dimension"]:
    squares = (vectors**2).sum(axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(squares + 1e-12)  # finite for a vector of zeros


def _check_classes(classes: Sequence[int], split: Split, vectors: int) -> None:
    own = sorted(set(classes))
    strays = sorted(set(split.classes.tolist()) - set(own))
    if strays:
        raise ValueError(
            f"telling_apart: expected images of the classes {own}, got some of "
            f"{strays}. Cut the split with datasets.only."
        )
    if not own or not all(0 <= each < vectors for each in own):
        raise ValueError(
            f"telling_apart: expected one or more classes from 0 to {vectors - 1}, "
            f"which have vectors, got {own}. Choose others or draw more vectors."
        )


def _check_config(split: Split, config: TrainConfig) -> None:
    if config.epochs < 1 or not 0 <= config.warmup < 1:
        raise ValueError(
            "train: expected one or more epochs and a warmup in [0, 1), got "
            f"{config.epochs} and {config.warmup}. Change the config."
        )
    if config.augment not in AUGMENTS:
        hint = did_you_mean(config.augment, AUGMENTS) or "."
        raise ValueError(
            f"train: expected augment to be one of {', '.join(AUGMENTS)}, got "
            f'"{config.augment}"{hint} Change the config.'
        )
    if config.optimizer not in OPTIMIZERS:
        hint = did_you_mean(config.optimizer, OPTIMIZERS) or "."
        raise ValueError(
            f"train: expected optimizer to be one of {', '.join(OPTIMIZERS)}, got "
            f'"{config.optimizer}"{hint} Change the config.'
        )
    if not 1 <= config.batch_size <= len(split):
        raise ValueError(
            f"train: expected a batch_size from 1 to {len(split)}, the number of "
            f"images, got {config.batch_size}. Change the config."
        )
