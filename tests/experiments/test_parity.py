import dataclasses
import re

import jax
import numpy as np
import pytest

from jmudsc.experiments import models, parity
from jmudsc.experiments.datasets import Split


@pytest.fixture(scope="module")
def variables():
    return models.init(parity.NETWORK, jax.random.key(0), (8, 8, 1))


def test_digits_are_given_the_classes_of_a_task():
    split = Split(np.zeros((10, 1, 1, 1), np.float32), np.arange(10, dtype=np.int32))
    odd = parity.reclassified(split, "parity").classes
    prime = parity.reclassified(split, "primality").classes
    assert odd.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    assert prime.tolist() == [2, 2, 3, 3, 2, 3, 2, 3, 2, 2]


def test_a_network_without_biases_scales_with_its_input(variables):
    images = parity.splits("digits", None)[1].images[:20]
    once, twice = (parity.apply_fn()(variables, s * images) for s in (1, 2))
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
    assert (np.asarray(once) >= 0).all()
    assert len(variables["params"]) == len(jax.tree.leaves(variables)) == 4


@pytest.mark.parametrize("task", parity.TASKS)
def test_a_loss_is_the_cross_entropy_of_the_cosines_to_two_vectors(task, variables):
    found = parity.loss(task, seed=3, dataset="digits")(variables)
    _, test = parity.splits("digits", None)
    classes = parity.classes_of(task)
    vectors = np.asarray(parity.class_vectors(3), float)[list(classes)]
    embedding = np.asarray(parity.apply_fn()(variables, test.images), float)
    embedding /= np.linalg.norm(embedding, axis=1, keepdims=True)
    powers = np.exp(parity.TRAINING.logit_scale * embedding @ vectors.T)
    share = powers / powers.sum(axis=1, keepdims=True)
    right = np.isin(test.classes, parity.TASKS[task]).astype(int)
    expected = -np.log(share[np.arange(len(right)), right]).mean()
    assert float(found) == pytest.approx(expected, rel=1e-4)
    own = parity.reclassified(test, task)
    _, accuracy = parity.scores(variables, own, parity.class_vectors(3), task)
    assert float(accuracy) == pytest.approx((share.argmax(axis=1) == right).mean())


def test_images_are_drawn_by_the_seed():
    first, again, other = (parity.calibration(s, 600, "digits") for s in (0, 0, 1))
    assert [len(batch) for batch in first] == [500, 100]
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])


def test_parents_learn_their_own_task_from_their_own_start(monkeypatch):
    config = dataclasses.replace(parity.TRAINING, epochs=3, batch_size=100)
    monkeypatch.setattr(parity, "TRAINING", config)
    training, _ = parity.splits("digits", None)
    parents = {t: parity.train_parent(t, 0, training) for t in parity.TASKS}
    for task in parity.TASKS:
        loss = parity.loss(task, seed=0, dataset="digits")
        own, other = (
            float(loss(parents[t])) for t in sorted(parity.TASKS, key=task.__ne__)
        )
        assert own < 0.3 < other


def test_tasks_that_are_not_there_are_refused():
    expected = (
        "parity: expected one of the tasks parity, primality, got "
        '"party"; did you mean "parity"?'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        parity.classes_of("party")
