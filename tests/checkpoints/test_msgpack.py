"""Msgpack files that Flax wrote, and others."""

import flax.serialization
import msgpack
import pytest
from checkpoint_checks import assert_same, sentence
from checkpoint_writers import as_msgpack, dicts_only

from jmudsc.checkpoints.load import load, load_shapes


def test_files_of_flax_without_an_ending_are_known_by_their_first_bytes(tmp_path):
    as_msgpack(tmp_path / "checkpoint_7", dicts_only())
    assert_same(load(tmp_path / "checkpoint_7"), dicts_only())


def test_a_msgpack_file_of_something_else(tmp_path):
    path = tmp_path / "run.msgpack"
    path.write_bytes(msgpack.packb({"a": b"raw", "b": 1.5}))
    expected = (
        f"{path}: expected arrays and numbers, got something else in 1 of 2 leaves. "
        "Leave them out:\n  a: bytes"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    path.write_bytes(flax.serialization.msgpack_serialize({"name": "vit", "w": 1.0}))
    with pytest.raises(
        ValueError, match="expected numbers, got 'vit' in leaf \"name\""
    ):
        load(path)
    expected = (
        f"{path}: expected numbers, got text in 1 of 2 leaves. Name the subtree to "
        'load, for instance subtree="params":\n  "name"'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_shapes(path)
