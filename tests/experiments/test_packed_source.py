import re

import numpy as np
import pytest

from jmudsc.experiments.datasets import load_splits
from jmudsc.experiments.packed_source import is_packed, read_packed


@pytest.fixture
def file(tmp_path):
    draw = np.random.default_rng(0).integers
    arrays = {}
    for split, count in (("train", 20), ("test", 6)):
        arrays[f"mnist/{split}/images"] = draw(
            256, size=(count, 4, 4, 1), dtype="uint8"
        )
        arrays[f"mnist/{split}/classes"] = np.arange(count, dtype=np.uint8) % 10
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz"


def test_splits_are_standardized_as_those_of_tfds_are(file):
    train, test = load_splits("mnist", "train[:15]", "test", file)
    with np.load(file) as stored:
        raw = stored["mnist/train/images"][:15].astype(float)
        other = stored["mnist/test/images"].astype(float)
    np.testing.assert_allclose(train.images, (raw - raw.mean()) / raw.std(), atol=1e-5)
    np.testing.assert_allclose(test.images, (other - raw.mean()) / raw.std(), atol=1e-5)
    assert train.classes.tolist() == [n % 10 for n in range(15)]
    assert train.classes.dtype == np.int32


@pytest.mark.parametrize(
    ("split", "places"),
    [("train", range(20)), ("train[:3]", range(3)), ("train[17:]", range(17, 20))],
)
def test_a_part_of_a_split_is_that_part(file, split, places):
    images, classes = read_packed(file, "mnist", split)
    assert len(images) == len(places)
    assert classes.tolist() == [n % 10 for n in places]


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "mnits",
            "train",
            "expected one of mnist/test, mnist/train, got mnits/train; did you mean "
            '"mnist/train"? Pack this dataset too.',
        ),
        (
            "mnist",
            "train[:30]",
            'expected a part of the 20 images of mnist/train, got "train[:30]". Pack '
            "more images, or ask for fewer.",
        ),
        (
            "mnist",
            "train[a]",
            'expected a split such as "train" or "train[:1000]", got "train[a]". '
            "Change the config.",
        ),
    ],
)
def test_what_is_not_there_is_said(file, name, split, message):
    with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
        read_packed(file, name, split)


def test_a_packed_file_is_known_by_its_ending():
    assert is_packed("a/images.npz")
    assert not is_packed("a/tfds")
    assert not is_packed(None)
