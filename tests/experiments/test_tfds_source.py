"""Datasets in the layout of TFDS, prepared here without TensorFlow or a download."""

import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core import registered

from jmudsc.experiments import tfds_source
from jmudsc.experiments.datasets import load_splits
from jmudsc.experiments.tfds_source import open_source, read_classes, stream

COUNTS = {"train": 30, "test": 12}


def drawn(split):
    rng = np.random.default_rng(len(split))
    return rng.integers(0, 256, (COUNTS[split], 4, 4, 3), np.uint8)


with registered.skip_registration():

    class TinyColors(tfds.core.GeneratorBasedBuilder):
        """Random images whose class is the remainder of their number."""

        VERSION = tfds.core.Version("1.0.0")
        SHAPE = (4, 4, 3)

        def _info(self):
            features = {
                "image": tfds.features.Tensor(
                    shape=self.SHAPE, dtype=np.uint8, encoding="zlib"
                ),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                description="tiny",
                features=tfds.features.FeaturesDict(features),
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for i, image in enumerate(drawn(split)):
                yield i, {"image": image, "label": i % 3}

    class TinySizes(TinyColors):
        """The same, said to differ in size."""

        SHAPE = (None, None, 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Prepare a tiny dataset."""
    path = tmp_path_factory.mktemp("tfds")
    for builder in (TinyColors, TinySizes):
        builder(data_dir=path, file_format="array_record").download_and_prepare()
    return path


def test_a_dataset_is_loaded_whole_and_standardized_by_its_training_images(folder):
    train, test = load_splits("tiny_colors", data_dir=folder)
    assert train.images.shape == (30, 4, 4, 3)
    assert train.images.dtype == test.images.dtype == np.float32
    assert sorted(test.classes.tolist()) == sorted(i % 3 for i in range(12))
    raw = drawn("train").astype(np.float64)
    mean, deviation = raw.mean(axis=(0, 1, 2)), raw.std(axis=(0, 1, 2))
    for split, name in ((train, "train"), (test, "test")):
        expected = (drawn(name) - mean) / deviation
        columns = [x.reshape(len(x), -1) for x in (split.images, expected)]
        np.testing.assert_allclose(*(np.sort(c, axis=0) for c in columns), atol=1e-5)


def test_images_keep_their_labels(folder):
    train, _ = load_splits("tiny_colors", data_dir=folder)
    numbers = {image.tobytes(): i for i, image in enumerate(drawn("train"))}
    source = open_source("tiny_colors", "train", folder)
    for example, label in zip(source, train.classes, strict=True):
        assert numbers[example["image"].tobytes()] % 3 == label


def test_part_of_a_split_can_be_loaded(folder):
    train, _ = load_splits("tiny_colors", "train[:10]", data_dir=folder)
    whole, _ = load_splits("tiny_colors", data_dir=folder)
    assert np.array_equal(train.classes, whole.classes[:10])


def test_a_stream_gives_the_same_batches_every_time(folder):
    batches = stream("tiny_colors", "train", folder, size=8, side=4)
    first, again = list(batches), list(batches)
    assert [len(batch) for batch in first] == [8, 8, 8, 6]
    assert len(batches) == 4
    assert all(map(np.array_equal, first, again))
    whole, _ = load_splits("tiny_colors", data_dir=folder)
    joined = np.concatenate(first)
    both = [x[..., 0].ravel() for x in (joined, whole.images)]
    assert np.corrcoef(*both)[0, 1] == pytest.approx(1, abs=1e-5)


def test_a_stream_keeps_the_classes_asked_for(folder):
    chosen = stream("tiny_colors", "train", folder, size=4, side=4, classes=[0, 2])
    labels = read_classes(open_source("tiny_colors", "train", folder))
    assert chosen.indices == np.flatnonzero(labels != 1).tolist()


def test_a_stream_scales_images_to_one_size(folder):
    for batch in stream("tiny_sizes", "test", folder, size=5, side=7):
        assert batch.shape[1:] == (7, 7, 3)


def test_scaling_keeps_what_is_linear_and_the_middle():
    rows = np.arange(32.0)[:, None, None] * np.ones((1, 48, 3))
    scaled = tfds_source._scaled(rows, 14)
    assert scaled.shape == (14, 14, 3)
    np.testing.assert_allclose(scaled[:, 0, 0], 16 * np.arange(1.5, 15.5) / 8 - 0.5)
    np.testing.assert_allclose(scaled.mean(), rows.mean(), rtol=1e-6)


def test_images_that_differ_in_size_are_not_loaded_whole(folder):
    message = (
        "tiny_sizes: expected images of one size, to hold them in memory, got images "
        "of shape (None, None, 3). Read them with tfds_source.stream."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_splits("tiny_sizes", data_dir=folder)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "imagenet2012"])
def test_a_dataset_that_is_not_there_gives_the_command_that_prepares_it(name, tmp_path):
    message = (
        f"{tmp_path}: expected {name} to be prepared there, did not find it. Run\n  "
        f"tfds build {name} --data_dir {tmp_path} --file_format array_record\nonce "
        "(this needs TensorFlow, reading does not), or choose another data_dir."
    )
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_splits(name, data_dir=tmp_path)


def test_a_dataset_nobody_knows_is_an_error(tmp_path):
    message = (
        f"{tmp_path}: expected a dataset that is there or that TFDS knows, got "
        '"cifar11"; did you mean "cifar10_1"? tfds.list_builders() lists what TFDS '
        "knows."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_splits("cifar11", data_dir=tmp_path)


def test_a_dataset_in_another_format_is_an_error(tmp_path, folder):
    import shutil

    copy = tmp_path / "tiny_colors" / "1.0.0"
    shutil.copytree(folder / "tiny_colors" / "1.0.0", copy)
    info = copy / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    message = (
        f"{copy}: expected a dataset stored as array_record, which can be read by "
        "position, got tfrecord. Remove it and run\n  tfds build tiny_colors "
        f"--data_dir {tmp_path} --file_format array_record"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_splits("tiny_colors", data_dir=tmp_path)


@pytest.mark.parametrize(("classes", "size", "count"), [([7], 4, 0), (None, 0, 30)])
def test_a_stream_of_nothing_is_an_error(classes, size, count, folder):
    message = (
        "stream: expected one or more images in batches of one or more, got "
        f"{count} images in batches of {size}. Choose another split, other classes or "
        "another size."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        stream("tiny_colors", "train", folder, size=size, classes=classes)


def test_digits_come_whole_only():
    message = (
        'digits: expected the splits "train" and "test", got "train[:10]" and "test". '
        "Name these, or take another dataset."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        load_splits("digits", "train[:10]")
