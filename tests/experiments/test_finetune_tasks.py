import numpy as np
import pytest

from jmudsc.experiments import finetune_tasks
from jmudsc.experiments.finetune_tasks import IMAGE_TASKS

DRAW = np.random.default_rng(0).normal
IMAGES, OTHERS = (
    DRAW(size=(3, 8, 8, 3)).astype("f"),
    DRAW(size=(3, 8, 8, 3)).astype("f"),
)
# What a change does no more than: times it must be done to be undone.
UNDONE = {"turned": 4, "negative": 2, "shuffled": 4, "other_colors": 6}


@pytest.mark.parametrize("name", IMAGE_TASKS)
def test_a_task_changes_every_image_and_keeps_its_shape(name):
    changed = IMAGE_TASKS[name].change(IMAGES, OTHERS)
    assert changed.shape == IMAGES.shape
    assert changed.dtype == np.float32
    assert all(not np.allclose(a, b) for a, b in zip(changed, IMAGES, strict=True))
    again = IMAGE_TASKS[name].change(IMAGES[1:2], OTHERS[1:2])
    np.testing.assert_array_equal(again, changed[1:2])  # each image by itself


@pytest.mark.parametrize("name", UNDONE)
def test_a_change_that_loses_nothing_can_be_undone(name):
    change, images = getattr(finetune_tasks, name), IMAGES
    for time in range(UNDONE[name]):
        assert time == 0 or not np.array_equal(images, IMAGES)
        images = change(images, OTHERS)
    assert np.array_equal(images, IMAGES)


def test_names_say_what_is_done():
    relief = IMAGE_TASKS["digits in relief"].change(np.ones_like(IMAGES), OTHERS)
    assert not relief.any()
    over = IMAGE_TASKS["digits on photos"].change(IMAGES, OTHERS)
    np.testing.assert_allclose(over, 0.7 * IMAGES + 0.7 * OTHERS, rtol=1e-5)
    gray = IMAGE_TASKS["photos gray, shuffled"].change(IMAGES, OTHERS)
    assert (gray == gray[..., :1]).all()
    np.testing.assert_allclose(gray.sum(), IMAGES.sum(), rtol=1e-4)
    assert all(name == task.name for name, task in IMAGE_TASKS.items())
