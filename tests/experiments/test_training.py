import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.experiments import training
from jmudsc.experiments.datasets import Split
from jmudsc.experiments.models import apply_fn, init, MLP, ResNet20
from jmudsc.experiments.training import (
    class_vectors,
    cosines,
    NetworkSetup,
    telling_apart,
    train,
    TrainConfig,
)
from jmudsc.experiments.training_state import Keeping

MODEL = MLP((16,), 8)
CONFIG = TrainConfig(epochs=10, batch_size=20, learning_rate=0.05)
SHAPE = (4, 4, 1)


def toy(classes, per_class=30):
    """Noisy copies of one random image per class."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(10, *SHAPE))
    own = np.repeat(np.array(classes, np.int32), per_class)
    noise = rng.normal(size=(len(own), *SHAPE))
    return Split((centers[own] + 0.3 * noise).astype(np.float32), own)


def trained(key, classes=(3, 7), config=CONFIG, model=MODEL, **kwargs):
    vectors = class_vectors(jax.random.key(5), 10, 8)
    variables = init(model, jax.random.key(6), SHAPE)
    goal = telling_apart(classes, toy(classes), vectors, config.logit_scale)
    return train(NetworkSetup(model, config), variables, goal, key=key, **kwargs)


def accuracy(variables, classes):
    split = toy(classes)
    vectors = class_vectors(jax.random.key(5), 10, 8)[np.array(classes)]
    found = cosines(apply_fn(MODEL)(variables, split.images), vectors).argmax(axis=1)
    return float((np.array(classes)[found] == split.classes).mean())


def test_class_vectors_have_length_one_and_come_from_the_key(key):
    vectors = class_vectors(key, 10, 64)
    np.testing.assert_allclose((vectors**2).sum(axis=1), 1, rtol=1e-5)
    assert np.array_equal(vectors, class_vectors(key, 10, 64))
    assert not np.array_equal(vectors, class_vectors(jax.random.key(1), 10, 64))


def test_cosines_do_not_depend_on_the_length_of_embeddings(key):
    vectors = class_vectors(key, 3, 8)
    np.testing.assert_allclose(
        cosines(7 * vectors, vectors), vectors @ vectors.T, atol=1e-6
    )
    assert np.isfinite(cosines(jnp.zeros((1, 8)), vectors)).all()


@pytest.mark.parametrize("classes", [(3, 7), (7, 3, 1)])
def test_a_trained_network_tells_its_classes_apart(classes, key):
    assert accuracy(trained(key, classes), classes) > 0.95


def test_one_key_gives_the_same_bits(key):
    one, again = trained(key), trained(key)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, again)))


def test_another_key_gives_another_network(key):
    one, other = trained(key), trained(jax.random.key(9))
    assert not any(
        np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.slow
def test_training_moves_statistics_along_with_parameters(key):
    model, config = ResNet20(1, 8), replace(CONFIG, epochs=1, batch_size=30)
    start = init(model, jax.random.key(6), SHAPE)
    after = trained(key, model=model, config=config)
    assert jax.tree.structure(after) == jax.tree.structure(start)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after, start)
    assert all(jax.tree.leaves(moved))


def test_parents_of_one_setup_share_a_compilation(key):
    config = replace(CONFIG, learning_rate=0.0123)
    before = training._step._cache_size()
    trained(key, (3, 7), config)
    trained(key, (1, 2), config)
    assert training._step._cache_size() == before + 1


def test_weight_decay_shrinks_what_the_loss_ignores(key):
    # classes apart at the first pixel only: the other pixels are always 0
    variables = init(MODEL, key, SHAPE)
    images = np.zeros((40, *SHAPE), np.float32)
    images[:20, 0, 0] = 1
    split = Split(images, np.repeat(np.array([0, 1], np.int32), 20))
    vectors = class_vectors(key, 2, 8)
    config = replace(CONFIG, weight_decay=0.1)
    goal = telling_apart((0, 1), split, vectors, config.logit_scale)
    after = train(NetworkSetup(MODEL, config), variables, goal, key=key)
    dead = [v["params"]["Dense_0"]["kernel"][1:] for v in (variables, after)]
    ratio = dead[1] / dead[0]
    assert float(ratio.max() - ratio.min()) < 1e-4
    assert 0 < float(ratio.mean()) < 0.95


def test_progress_is_told_of_every_epoch(key):
    told = []
    trained(key, progress=lambda *args: told.append(args))
    stages, done, total = zip(*told, strict=True)
    assert done == tuple(range(1, CONFIG.epochs + 1))
    assert set(total) == {CONFIG.epochs}
    losses = [float(re.fullmatch(r"training \(loss (.*)\)", s)[1]) for s in stages]
    assert losses[-1] < losses[0]


def test_images_of_another_task_are_an_error(key):
    message = (
        "telling_apart: expected images of the classes [1, 3], got some of [7]. Cut "
        "the split with datasets.only."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        train_on(toy((3, 7)), (3, 1), key)


@pytest.mark.parametrize("classes", [(3, 10), (-1, 3)])
def test_a_class_without_a_vector_is_an_error(classes, key):
    message = (
        "telling_apart: expected one or more classes from 0 to 9, which have vectors, "
        f"got {list(classes)}. Choose others or draw more vectors."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        train_on(toy((3,)), classes, key)


def test_no_classes_are_an_error(key):
    message = "telling_apart: expected one or more classes from 0 to 9, which have"
    with pytest.raises(ValueError, match=re.escape(message)):
        train_on(toy(()), (), key)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"warmup": 1.0}])
def test_a_config_out_of_range_is_an_error(change, key):
    config = replace(CONFIG, **change)
    message = (
        "train: expected one or more epochs and a warmup in [0, 1), got "
        f"{config.epochs} and {config.warmup}. Change the config."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        train_on(toy((3, 7)), (3, 7), key, config)


@pytest.mark.parametrize("size", [0, 61])
def test_images_that_fill_no_batch_are_an_error(size, key):
    message = (
        "train: expected a batch_size from 1 to 60, the number of images, got "
        f"{size}. Change the config."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        train_on(toy((3, 7)), (3, 7), key, replace(CONFIG, batch_size=size))


def train_on(split, classes, key, config=CONFIG):
    vectors = class_vectors(key, 10, 8)
    variables = init(MODEL, key, SHAPE)
    goal = telling_apart(classes, split, vectors, config.logit_scale)
    return train(NetworkSetup(MODEL, config), variables, goal, key=key)


def stopping_after(epochs):
    def progress(stage, done, total):
        if done > epochs:
            raise InterruptedError

    return progress


@pytest.mark.parametrize(("after", "every"), [(1, 1), (7, 3)])
@pytest.mark.parametrize("augment", ["none", "crop-flip"])
def test_a_training_that_was_stopped_ends_with_the_same_bits(
    after, every, augment, key, tmp_path
):
    config = replace(CONFIG, augment=augment)
    whole = trained(key, config=config)
    kept = {"config": config, "keeping": Keeping(tmp_path / "state", every)}
    with pytest.raises(InterruptedError):
        trained(key, progress=stopping_after(after), **kept)
    last = after - after % every
    assert [p.name for p in (tmp_path / "state").iterdir()] == [f"epoch-{last:05}"]
    seen = []
    again = trained(key, progress=lambda *args: seen.append(args[1]), **kept)
    assert seen == list(range(last + 1, 11))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole, again)))


def test_a_finished_training_is_not_done_again(key, tmp_path):
    once = trained(key, keeping=Keeping(tmp_path))
    again = trained(key, keeping=Keeping(tmp_path), progress=stopping_after(0))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, once, again)))


def test_another_training_does_not_go_on_from_the_state_of_this_one(key, tmp_path):
    trained(key, keeping=Keeping(tmp_path))
    message = (
        f"{tmp_path}: expected the state of a training with the same model, config, "
        "key and data, got that of another. Remove it or choose another folder."
    )
    for other in ({"config": replace(CONFIG, momentum=0.8)}, {"classes": (1, 2)}):
        with pytest.raises(ValueError, match=re.escape(message)):
            trained(key, keeping=Keeping(tmp_path), **other)
    with pytest.raises(ValueError, match=re.escape(message)):
        trained(jax.random.key(4), keeping=Keeping(tmp_path))


def test_augmentation_is_part_of_training(key):
    plain, changed = (
        trained(key, config=replace(CONFIG, augment=name)) for name in ("none", "flip")
    )
    same = jax.tree.map(np.array_equal, plain, changed)
    assert not any(jax.tree.leaves(same))


def test_an_augmentation_that_is_not_there_is_an_error(key):
    message = (
        "train: expected augment to be one of none, crop, flip, crop-flip, got "
        '"crops"; did you mean "crop"? Change the config.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        trained(key, config=replace(CONFIG, augment="crops"))


def test_adam_takes_steps_of_the_size_of_the_rate_and_decays_the_parameters(key):
    """One epoch of one batch: the step is at the start of the climb, so of no size."""
    config = replace(CONFIG, optimizer="adam", learning_rate=0.01, epochs=10)
    assert accuracy(trained(key, config=config), (3, 7)) > 0.95
    still = replace(config, warmup=0.0, epochs=1, batch_size=60, weight_decay=0.5)
    start = init(MODEL, jax.random.key(6), SHAPE)["params"]["Dense_0"]["kernel"]
    moved = trained(key, config=still)["params"]["Dense_0"]["kernel"]
    step = np.asarray(moved - start * (1 - 0.01 * 0.5))
    sizes = np.abs(step[np.abs(step) > 1e-4])
    np.testing.assert_allclose(sizes, 0.01, rtol=1e-2)
    assert len(sizes) > 0.5 * step.size


def test_an_optimizer_that_is_not_there_is_an_error(key):
    message = (
        'train: expected optimizer to be one of sgd, adam, got "adamw"; did you mean '
        '"adam"? Change the config.'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        trained(key, config=replace(CONFIG, optimizer="adamw"))
