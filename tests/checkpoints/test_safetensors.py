"""Safetensors files, one or several."""

import json
import struct

import jax
import jax.numpy as jnp
import pytest
import safetensors.flax
from checkpoint_checks import assert_same, sentence
from checkpoint_writers import as_safetensors, dicts_only, flat

import jmudsc
from jmudsc.checkpoints.load import load, load_shapes


def test_shards_are_read_by_their_index(tmp_path):
    leaves = flat(dicts_only())
    shards = {
        name: f"model-{i % 2 + 1:05}-of-00002.safetensors"
        for i, name in enumerate(leaves)
    }
    for shard in set(shards.values()):
        part = {name: leaves[name] for name in leaves if shards[name] == shard}
        safetensors.flax.save_file(part, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert_same(load(tmp_path), dicts_only())
    assert_same(load(index), dicts_only())
    assert_same(load(tmp_path, "masks"), dicts_only()["masks"])
    shape = jax.ShapeDtypeStruct((3, 3), jnp.bfloat16)
    assert load_shapes(tmp_path)["params"]["square"] == shape


def test_a_directory_of_one_safetensors_file_is_that_file(tmp_path):
    as_safetensors(tmp_path / "model.safetensors", dicts_only())
    (tmp_path / "config.json").write_text("{}")
    assert_same(load(tmp_path), dicts_only())


def test_several_safetensors_files_without_an_index(tmp_path):
    for name in ("a", "b"):
        as_safetensors(tmp_path / f"{name}.safetensors", {"w": jnp.ones(1)})
    expected = (
        f"{tmp_path}: expected one safetensors file or an index of several, got 2 "
        "files without one. Give one of them:\n  a.safetensors\n  b.safetensors"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (
            [],
            'expected JSON with "weight_map", array name -> file name, got something '
            "else. Copy it again.",
        ),
        (
            {"w": "../w.safetensors"},
            "expected names of files beside it, got 1 of 1 elsewhere. Move the files "
            "and correct the names:\n  ../w.safetensors",
        ),
        (
            {"w": "a.safetensors", "v": "b.safetensors"},
            "expected all files that it names beside it, got 1 of 2 missing. Copy them "
            "again:\n  b.safetensors",
        ),
        (
            {"w": "a.safetensors", "v": "a.safetensors"},
            "expected every array in the file that it names for it, got 1 of 2 that "
            "are not. Copy the checkpoint again:\n  v: not in a.safetensors",
        ),
    ],
    ids=["empty", "elsewhere", "missing", "lost"],
)
def test_an_index_that_is_wrong(content, rest, tmp_path):
    as_safetensors(tmp_path / "a.safetensors", {"w": jnp.ones(1)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": content}))
    with pytest.raises(ValueError, match=sentence(f"{index}: {rest}")):
        load(tmp_path)


def test_a_header_that_lies_is_one_sentence(tmp_path):
    path = tmp_path / "run.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(
        ValueError, match=r"expected a whole safetensors file, got one .* \(.*\)"
    ):
        jmudsc.load(path)
