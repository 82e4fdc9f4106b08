import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.experiments.accuracy import score_ensemble, score_network, Scores
from jmudsc.experiments.datasets import Split
from jmudsc.experiments.training import class_vectors

TASKS = ((0, 1, 2), (3, 4))
VECTORS = class_vectors(jax.random.key(0), 5, 16)


def linear(variables, images):
    """Embed by a table: an image holds the one-hot code of its class."""
    return images.reshape(len(images), -1) @ variables["table"]


def coded(classes):
    classes = np.array(classes, np.int32)
    images = np.eye(5, dtype=np.float32)[classes].reshape(-1, 5, 1, 1)
    return Split(images, classes)


def specialist(task):
    """Right on its task, sure of its first class on every other image."""
    table = jnp.tile(VECTORS[task[0]], (5, 1))
    return {"table": table.at[jnp.array(task)].set(VECTORS[jnp.array(task)])}


def test_a_network_that_knows_all_classes_is_perfect():
    split = coded([0, 1, 2, 3, 4, 4])
    assert score_network(linear, {"table": VECTORS}, split, VECTORS, TASKS) == Scores(
        1.0, (1.0, 1.0)
    )


def test_a_specialist_is_right_on_its_own_task_only():
    scores = score_network(
        linear, specialist(TASKS[0]), coded(range(5)), VECTORS, TASKS
    )
    assert scores.per_task[0] == 1.0
    assert scores.joint == 0.6


def test_an_ensemble_of_unsure_strangers_is_perfect():
    # off its task each specialist embeds midway, so that it is never sure of a class
    models = []
    for task in TASKS:
        own = jnp.array(task)
        middle = VECTORS[own].sum(axis=0)
        table = jnp.tile(middle, (5, 1)).at[own].set(VECTORS[own])
        models.append({"table": table})
    scores = score_ensemble(
        linear, models, coded(range(5)), VECTORS, TASKS, logit_scale=50.0
    )
    assert scores == Scores(1.0, (1.0, 1.0))


def test_an_ensemble_asks_each_model_about_its_own_classes_only():
    models = [specialist(task) for task in TASKS]
    scores = score_ensemble(linear, models, coded(range(5)), VECTORS, TASKS)
    assert scores.per_task == (1.0, 1.0)


@pytest.mark.parametrize("seed", range(4))
def test_who_is_right_among_all_is_right_among_the_task(seed):
    key, class_key = jax.random.split(jax.random.key(seed))
    classes = np.asarray(jax.random.randint(class_key, (300,), 0, 5))
    classes = np.concatenate([classes, np.arange(5)])
    images = jax.random.normal(key, (305, 5, 1, 1))
    split = Split(np.asarray(images), classes.astype(np.int32))
    scores = score_network(linear, {"table": VECTORS}, split, VECTORS, TASKS)
    shares = [np.isin(classes, task).mean() for task in TASKS]
    of_all = sum(a * s for a, s in zip(scores.per_task, shares, strict=True))
    assert 0 < scores.joint <= of_all + 1e-9


def test_the_mean_is_over_tasks_not_images():
    split = coded([0, 0, 0, 0, 1, 2, 3, 4])
    scores = score_network(linear, specialist(TASKS[0]), split, VECTORS, TASKS)
    assert scores.mean == pytest.approx(sum(scores.per_task) / 2)


def test_the_size_of_batches_does_not_show():
    """600 images take three batches, the last of them padded."""
    classes = np.arange(600) % 5
    scores = score_network(linear, {"table": VECTORS}, coded(classes), VECTORS, TASKS)
    assert scores == Scores(1.0, (1.0, 1.0))


def test_splits_of_all_sizes_share_one_compilation():
    traces = []

    def counted(variables, images):
        traces.append(images.shape)
        return linear(variables, images)

    for count in (5, 600):
        split = coded(np.arange(count) % 5)
        score_network(counted, {"table": VECTORS}, split, VECTORS, TASKS)
    assert len(traces) == 1


@pytest.mark.parametrize("tasks", [((0, 1), (3, 4)), ((0, 1, 2), (2, 3, 4))])
def test_tasks_that_do_not_partition_the_classes_are_an_error(tasks):
    classes = sorted(tasks[0] + tasks[1])
    message = (
        "score_network: expected tasks that have the classes of the images, "
        f"[0, 1, 2, 3, 4], each in one task, got {classes}. Pass the tasks of this "
        "split, or cut it with datasets.only."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        score_network(linear, {"table": VECTORS}, coded(range(5)), VECTORS, tasks)


def test_an_empty_split_is_an_error():
    with pytest.raises(
        ValueError, match=re.escape("the classes of the images, [], each")
    ):
        score_network(linear, {"table": VECTORS}, coded([]), VECTORS, TASKS)


def test_a_class_without_a_vector_is_an_error():
    message = (
        "score_network: expected a vector for each class up to 4, got 4 vectors. Pass "
        "the class vectors of training."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        score_network(linear, {"table": VECTORS}, coded(range(5)), VECTORS[:4], TASKS)


def test_embeddings_that_are_not_finite_are_an_error():
    table = VECTORS.at[3].set(jnp.nan)
    message = (
        "score_network: expected finite embeddings, got 2 of 6 that are not. Check the "
        "variables and the range of the images."
    )
    split = coded([0, 1, 2, 3, 3, 4])
    split.images[:] = np.where(split.images == 1, 1, 0)

    def lookup(variables, images):
        return variables["table"][images.reshape(len(images), -1).argmax(axis=1)]

    with pytest.raises(ValueError, match=re.escape(message)):
        score_network(lookup, {"table": table}, split, VECTORS, TASKS)


def test_an_ensemble_needs_a_model_for_each_task():
    message = (
        "score_ensemble: expected one model for each of 2 tasks, got 1. Pass the "
        "parents in the order of their tasks."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        score_ensemble(linear, [{"table": VECTORS}], coded(range(5)), VECTORS, TASKS)
