import re

import jax
import numpy as np
import pytest

from jmudsc.experiments.class_split_config import Experiment
from jmudsc.experiments.datasets import Split
from jmudsc.experiments.models import MLP
from jmudsc.experiments.seed_setup import draw_tasks, set_up_seed
from jmudsc.experiments.training import TrainConfig

EXPERIMENT = Experiment(
    "toy", MLP((4,), 2), TrainConfig(1, 10, 0.1), calibration=30, search=20
)


def toy(count, classes=6):
    labels = np.arange(count, dtype=np.int32) % classes
    return Split(np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1), labels)


def test_seeds_differ_in_everything_that_is_drawn():
    setups = [set_up_seed(EXPERIMENT, seed, toy(600), toy(60)) for seed in (0, 0, 1)]
    for first, second, same in zip(setups, setups[1:], (True, False), strict=False):
        assert (first.tasks == second.tasks) == same
        assert np.array_equal(first.vectors, second.vectors) == same
        drawn = [np.ravel(setup.search.images) for setup in (first, second)]
        assert np.array_equal(*drawn) == same


def test_calibration_and_search_are_as_many_images_as_asked_for():
    setup = set_up_seed(EXPERIMENT, 0, toy(600), toy(60))
    assert sum(map(len, setup.calibration)) == 30
    assert len(setup.search) == 20
    assert len(setup.network_keys) == 3


def test_tasks_that_are_given_decide_which_images_there_are():
    given = Experiment("toy", MLP((4,), 2), EXPERIMENT.training, tasks=((5, 1), (2,)))
    setup = set_up_seed(given, 0, toy(600), toy(60))
    assert setup.tasks == ((5, 1), (2,))
    for split in (setup.training, setup.test, setup.search):
        assert set(split.classes.tolist()) == {1, 2, 5}
    assert sum(map(len, setup.calibration)) == 300


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
        "tasks: expected one or more classes for each of 3 tasks, got 2 classes. Ask "
        "for fewer tasks."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        draw_tasks(key, [0, 1], 3)
