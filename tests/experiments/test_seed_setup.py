import re

import jax
import numpy as np
import pytest

from jmudsc.experiments.class_split_config import Experiment
from jmudsc.experiments.datasets import Split
from jmudsc.experiments.models import MLP
from jmudsc.experiments.seed_setup import draw_tasks, lay_ground
from jmudsc.experiments.training import TrainConfig

EXPERIMENT = Experiment(
    "toy", MLP((4,), 2), TrainConfig(1, 10, 0.1), calibration=30, search=20
)


def toy(count, classes=6):
    labels = np.arange(count, dtype=np.int32) % classes
    return Split(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), labels)


def test_seeds_differ_in_everything_that_is_drawn():
    grounds = [lay_ground(EXPERIMENT, seed, toy(600), toy(60)) for seed in (0, 0, 1)]
    for first, second, same in zip(grounds, grounds[1:], (True, False), strict=False):
        assert (first.tasks == second.tasks) == same
        assert np.array_equal(first.vectors, second.vectors) == same
        drawn = [np.ravel(ground.search.images) for ground in (first, second)]
        assert np.array_equal(*drawn) == same


def test_calibration_and_search_are_as_many_images_as_asked_for():
    ground = lay_ground(EXPERIMENT, 0, toy(600), toy(60))
    assert sum(map(len, ground.calibration)) == 30
    assert len(ground.search) == 20
    assert len(ground.network_keys) == 3


def test_tasks_that_are_given_decide_which_images_there_are():
    given = Experiment("toy", MLP((4,), 2), EXPERIMENT.training, tasks=((5, 1), (2,)))
    ground = lay_ground(given, 0, toy(600), toy(60))
    assert ground.tasks == ((5, 1), (2,))
    for split in (ground.training, ground.test, ground.search):
        assert set(split.labels.tolist()) == {1, 2, 5}
    assert sum(map(len, ground.calibration)) == 300


@pytest.mark.parametrize(
    ("classes", "sizes"), [(range(10), [5, 5]), (range(7), [4, 3])]
)
def test_drawn_tasks_are_parts_of_the_classes(classes, sizes, key):
    tasks = draw_tasks(key, classes, 2)
    assert [len(task) for task in tasks] == sizes
    assert sorted(sum(tasks, ())) == list(classes)
    assert draw_tasks(jax.random.key(3), classes, 2) != tasks


def test_more_tasks_than_classes_is_an_error(key):
    message = (
        "tasks: 3 tasks for 2 classes, each needs one or more; ask for fewer tasks."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_tasks(key, [0, 1], 3)
