"""Flax is the oracle: bytes of the one are read and written by the other."""

import jax
import numpy as np
import pytest
from flax import serialization

from jmudsc.checkpoints.flax_bytes import from_bytes, to_bytes

DTYPES = [
    "bool", "int8", "uint8", "int32", "int64", "float16", "float32", "float64",
    "complex64", "bfloat16", "float8_e4m3fn", "int4",
]  # fmt: skip


def tree():
    arrays = {name: np.arange(6).reshape(2, 3).astype(name) for name in DTYPES}
    return {
        "arrays": arrays,
        "none of it": np.zeros((0, 3), np.float32),
        "turned": np.arange(6.0).reshape(2, 3).T,
        "no axes": np.asarray(3.0),
        "scalars": {"of numpy": np.float32(2.5), "bfloat16": np.ones(1, "bfloat16")[0]},
        "plain": {"int": 3, "float": 0.5, "complex": 1 + 2j, "bool": True, "text": "a"},
        "empty": {},
    }


def in_order(unsorted):
    return jax.tree.map(lambda leaf: leaf, unsorted)


def same(one, other):
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, np.ndarray | np.generic):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def test_a_tree_is_written_to_the_bytes_that_flax_writes():
    assert to_bytes(tree()) == serialization.msgpack_serialize(tree())


def test_a_tree_of_flax_is_read_as_flax_reads_it():
    content = serialization.to_bytes({**tree(), "list": [np.ones(2), 1]})
    same(from_bytes(content), serialization.msgpack_restore(content))


def test_what_is_written_is_read_again():
    same(from_bytes(to_bytes(tree())), in_order(tree()))


@pytest.mark.parametrize("largest", [1, 8, 20, 24])
def test_large_arrays_are_cut_as_flax_cuts_them(largest, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", largest)
    content = to_bytes(tree(), largest)
    assert content == serialization.msgpack_serialize(tree())
    assert content != to_bytes(tree())
    same(from_bytes(content), in_order(tree()))
    same(serialization.msgpack_restore(content), in_order(tree()))


def test_what_has_no_place_in_a_file_is_an_error():
    with pytest.raises(TypeError, match=r"^a set has no place in a msgpack file$"):
        to_bytes({"a": set()})
