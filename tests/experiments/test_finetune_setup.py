import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.experiments.finetune_config import FineTuneExperiment
from jmudsc.experiments.finetune_images import load_pictures
from jmudsc.experiments.finetune_setup import (
    accuracy_by_task,
    Exam,
    set_up_finetunes,
)
from jmudsc.experiments.models import MLP
from jmudsc.experiments.training import TrainConfig

TRAINING = TrainConfig(1, 10, 0.1)
NAMES = ("digits negative", "vehicles turned")


def experiment(**more):
    sizes = {"base_images": 700, "task_images": 40, "test_images": 50, "search": 20}
    given = {"digits": "digits", "photos": "digits", "side": 8, "samples": (4, 16)}
    network = MLP((8,), 6)
    return FineTuneExperiment(
        NAMES, network, TRAINING, TRAINING, **sizes | given | more
    )


@pytest.fixture(scope="module")
def pictures():
    return load_pictures("digits", "digits", 8, None)


def seen(images):
    return {image.tobytes() for image in images}


def test_no_network_and_no_choice_sees_the_images_of_another(pictures):
    setup = set_up_finetunes(experiment(glimpse=0.0), 0, pictures)
    negative = setup.search.images[setup.search.tasks == 0]
    base = setup.base.images[:700]  # of digits; here photos are the same images
    parts = [base, -setup.tasks[0].images, -setup.inputs[0], -negative]
    sizes = [len(seen(part)) for part in parts]
    assert sizes == [700, 40, 16, 20]
    assert len(set().union(*map(seen, parts))) == sum(sizes)
    assert [len(split) for split in setup.tasks] == [40, 40]
    assert np.bincount(setup.test.tasks).tolist() == [50, 50]


def test_images_keep_their_classes_and_a_task_has_its_own(pictures):
    setup = set_up_finetunes(experiment(), 0, pictures)
    known = {
        image.tobytes(): c
        for image, c in zip(
            pictures.digits.images, pictures.digits.classes, strict=True
        )
    }
    for image, c in zip(setup.tasks[0].images, setup.tasks[0].classes, strict=True):
        assert known[(-image).tobytes()] == c
    assert set(setup.tasks[1].classes) == {10, 11, 18, 19}
    assert np.flatnonzero(setup.test.own[1]).tolist() == [10, 11, 18, 19]
    assert np.flatnonzero(setup.test.own[0]).tolist() == list(range(10))
    assert setup.vectors.shape == (20, 6)


def test_so_large_a_share_of_the_bases_images_is_changed(pictures):
    plain = set_up_finetunes(experiment(glimpse=0.0), 0, pictures).base
    some = set_up_finetunes(experiment(glimpse=0.5), 0, pictures).base
    all_of = seen(pictures.digits.images) | seen(pictures.photos.images)
    assert seen(plain.images) <= all_of
    changed = np.mean([image.tobytes() not in all_of for image in some.images])
    # half of all are drawn, and half of those for the task of the image's kind; of
    # photos only the four classes of the task
    assert abs(changed - 0.5 * (0.5 + 0.5 * 0.4) / 2) < 0.04


def test_seeds_differ_and_one_seed_is_the_same_again(pictures):
    first, again, other = (
        set_up_finetunes(experiment(), seed, pictures) for seed in (0, 0, 1)
    )
    assert np.array_equal(first.base.images, again.base.images)
    assert np.array_equal(first.tasks[1].images, again.tasks[1].images)
    assert not np.array_equal(first.tasks[1].images, other.tasks[1].images)
    assert not np.array_equal(first.vectors, other.vectors)


def test_too_few_images_are_an_error(pictures):
    message = (
        "digits negative: expected 2036 training images that the base has not seen, got"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        set_up_finetunes(experiment(task_images=2000), 0, pictures)


def test_an_image_is_told_apart_among_its_own_tasks_classes_only():
    """The network says what the image holds; images hold embeddings."""
    vectors = jnp.eye(4)
    apply_fn = lambda variables, images: images.reshape(len(images), 4)
    own = np.array([[True, True, False, False], [False, True, True, True]])
    images = np.array(
        [
            [0.5, 0.1, 0.9, 0.0],  # class 0 of the first task, though nearer to 2
            [0.9, 0.5, 0.0, 0.0],  # class 0, where 1 is right
            [0.9, 0.1, 0.2, 0.3],  # class 3 of the second task
            [np.nan, 0.1, 0.2, 0.3],  # no number, so wrong
        ],
        np.float32,
    ).reshape(4, 1, 1, 4)
    classes, tasks = np.array([0, 1, 3, 3]), np.array([0, 0, 1, 1])
    exam = Exam(images, classes, tasks, own)
    assert accuracy_by_task(apply_fn, {}, exam, vectors) == (0.5, 0.5)
    # more images than go into one batch
    many = Exam(*(np.concatenate([x] * 300) for x in (images, classes, tasks)), own)
    assert accuracy_by_task(apply_fn, {}, many, vectors) == (0.5, 0.5)
    assert jax.numpy.isnan(images).any()
