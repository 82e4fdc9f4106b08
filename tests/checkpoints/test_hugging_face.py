"""Directories of Hugging Face models: read, written, and refused where they differ."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
import tiny_llama as llama
from checkpoint_checks import sentence
from checkpoint_writers import result_of

import jmudsc
from jmudsc.checkpoints.hugging_face import transposed_axes
from jmudsc.checkpoints.shards import sharded
from jmudsc.lazy import is_lazy, LazyArray


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        assert ours[name].dtype == leaf.dtype
        np.testing.assert_array_equal(np.asarray(ours[name]), leaf)


def read_by_safetensors(folder):
    """Every leaf, by the library alone, and the metadata of each file."""
    found, metadata = {}, []
    for file in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(file, framework="numpy") as opened:
            metadata.append(opened.metadata())
        found |= safetensors.numpy.load_file(file)
    return found, metadata


@pytest.mark.parametrize("files", [1, 3])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_directory_is_read_by_the_names_in_it(files, dtype, tmp_path):
    leaves = llama.leaves(0, dtype=dtype)
    folder = llama.write(tmp_path / "model", leaves, files=files)
    same(jmudsc.load(folder), leaves)
    lazy = jmudsc.load(folder, lazy=True)
    assert is_lazy(lazy)
    same({name: leaf.read() for name, leaf in lazy.items()}, leaves)
    nested = jmudsc.load(folder, separator=".")
    assert nested["model"]["layers"]["2"]["mlp"]["up_proj"]["weight"].shape == (12, 8)


@pytest.mark.parametrize("size", [1, 1500, 10**9])
def test_a_result_is_written_like_the_donor(size, tmp_path):
    leaves = llama.leaves(0, dtype="bfloat16")
    config = {"torch_dtype": "bfloat16"}
    donor = llama.write(tmp_path / "donor", leaves, config)
    merged = llama.leaves(1, dtype="bfloat16")
    options = jmudsc.HuggingFace(donor, shard_size=size)
    out = jmudsc.save(tmp_path / "out", result_of(merged), hugging_face=options)
    found, metadata = read_by_safetensors(out)
    same(found, merged)
    assert all(each == {"format": "pt"} for each in metadata)
    same(jmudsc.load(out), merged)
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "modeling_own.py",
    ):
        assert (out / name).read_bytes() == (donor / name).read_bytes()
    files = sorted(x.name for x in out.glob("model*.s*"))
    if size == 10**9:
        assert files == ["model.safetensors"]
        return
    count = len(read_by_safetensors(out)[1])
    shards = [f"model-{n + 1:05}-of-{count:05}.safetensors" for n in range(count)]
    assert files == [*shards, "model.safetensors.index.json"]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in merged.values())
    for name, file in index["weight_map"].items():
        assert name in safetensors.numpy.load_file(out / file)
    largest = max(x.nbytes for x in merged.values())
    for file in shards:
        held = safetensors.numpy.load_file(out / file)
        assert sum(x.nbytes for x in held.values()) <= max(size, largest)


def test_shards_are_as_full_as_may_be_in_the_order_of_leaves():
    def leaf(name, count):
        return LazyArray(name, (count,), np.dtype("int8"), lambda names: {})

    leaves = {str(n): leaf(str(n), n) for n in (4, 6, 1, 30, 5, 5)}
    leaves["last"] = leaf("last", 1)
    assert [list(x) for x in sharded(leaves, 10)] == [
        ["4", "6"],
        ["1"],
        ["30"],
        ["5", "last"],
    ]


def test_leaves_are_written_one_by_one(tmp_path):
    """No more than one leaf is alive at a time while shards are written."""
    donor = llama.write(tmp_path / "donor", llama.leaves(0))
    order = []

    def lazily(name, leaf):
        def fetch(names):
            order.append(name)
            return {name: leaf}

        return LazyArray(name, leaf.shape, leaf.dtype, fetch)

    merged = {name: lazily(name, x) for name, x in llama.leaves(1).items()}
    options = jmudsc.HuggingFace(donor, shard_size=2000)
    jmudsc.save(tmp_path / "out", result_of(merged), hugging_face=options)
    assert sorted(order) == sorted(merged)


def test_configuration_tells_of_the_types_and_rows_that_are_written(tmp_path):
    config = {"torch_dtype": "float32", "vocab_size": 16, "rope_theta": 1e6}
    donor = llama.write(tmp_path / "donor", llama.leaves(0), config)
    merged = llama.leaves(1, dtype="bfloat16", vocab=20)
    options = jmudsc.HuggingFace(donor)
    out = jmudsc.save(tmp_path / "out", result_of(merged), hugging_face=options)
    before = json.loads((donor / "config.json").read_text())
    after = json.loads((out / "config.json").read_text())
    assert after == {**before, "torch_dtype": "bfloat16", "vocab_size": 20}


def test_a_head_that_the_configuration_ties_may_be_left_out(tmp_path):
    config = {"tie_word_embeddings": True}
    donor = llama.write(tmp_path / "donor", llama.leaves(0), config)
    merged = llama.leaves(1)
    del merged["lm_head.weight"]
    options = jmudsc.HuggingFace(donor)
    out = jmudsc.save(tmp_path / "out", result_of(merged), hugging_face=options)
    same(jmudsc.load(out), merged)


def test_leaves_that_the_donor_has_not_are_refused_before_anything_is_written(tmp_path):
    donor = llama.write(tmp_path / "donor", llama.leaves(0))
    merged = llama.leaves(1)
    merged["model.norm.wieght"] = merged.pop("model.norm.weight")
    name = "model.layers.0.mlp.up_proj.weight"
    merged[name] = merged[name].T
    expected = (
        f"{tmp_path}/out: expected the leaves that {donor} has, got 3 that differ. "
        "Rename the leaves, transpose them as torch has them, or save in another "
        f"format:\n  {name}: [8, 12], [12, 8] in the donor\n  model.norm.weight: is "
        'missing\n  model.norm.wieght: not in the donor; did you mean "'
        'model.norm.weight"?'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        jmudsc.save(
            tmp_path / "out",
            result_of(merged),
            hugging_face=jmudsc.HuggingFace(donor),
        )
    assert [x.name for x in tmp_path.iterdir()] == ["donor"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    donor = llama.write(tmp_path / "donor", llama.leaves(0))
    result = result_of(llama.leaves(1))

    def refused(path, expected, **options):
        like = jmudsc.HuggingFace(**{"donor": donor, **options})
        with pytest.raises(ValueError, match=sentence(expected)):
            jmudsc.save(path, result, hugging_face=like)

    out = tmp_path / "out"
    refused(
        out,
        f"{out}: expected a directory with config.json and safetensors to take the "
        f"configuration from, got {tmp_path}. Give that of the base or of a model.",
        donor=tmp_path,
    )
    refused(
        out,
        f"{out}: expected a shard_size of 1 or more bytes, got 0. Leave it out for "
        "5000000000.",
        shard_size=0,
    )
    refused(
        f"{out}.npz",
        f"{out}.npz: expected a directory for a Hugging Face model, got a file. Leave "
        "the ending out.",
    )
    (donor / "config.json").write_text("[]")
    refused(
        out,
        f"{donor}/config.json: expected a JSON object, got something else. Copy it "
        "again.",
    )
    assert not out.exists()


def test_only_what_was_saved_is_replaced(tmp_path):
    donor = llama.write(tmp_path / "donor", llama.leaves(0))
    options = jmudsc.HuggingFace(donor, shard_size=1500)
    out = tmp_path / "out"
    jmudsc.save(out, result_of(llama.leaves(1)), hugging_face=options)
    merged = llama.leaves(2)
    one = jmudsc.HuggingFace(donor)
    jmudsc.save(out, result_of(merged), hugging_face=one, overwrite=True)
    same(jmudsc.load(out), merged)
    assert [x.name for x in out.glob("model*.s*")] == ["model.safetensors"]
    (out / "note.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="changed or other files"):
        jmudsc.save(out, result_of(merged), hugging_face=one, overwrite=True)


def test_damage_is_found_when_it_is_read(tmp_path):
    donor = llama.write(tmp_path / "donor", llama.leaves(0))
    options = jmudsc.HuggingFace(donor)
    out = jmudsc.save(
        tmp_path / "out", result_of(llama.leaves(1)), hugging_face=options
    )
    file = out / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="expected all leaves as jmudsc saved them"):
        jmudsc.load(out)


def test_a_killed_save_leaves_no_half_model(tmp_path):
    llama.write(tmp_path / "donor", llama.leaves(0))
    code = """
import os, signal, sys
import tiny_llama as llama
from checkpoint_writers import result_of
import jmudsc
from jmudsc.lazy import LazyArray

def killed(name, leaf):
    def fetch(names):
        if name == "model.norm.weight":
            os.kill(os.getpid(), signal.SIGKILL)
        return {name: leaf}
    return LazyArray(name, leaf.shape, leaf.dtype, fetch)

leaves = {n: killed(n, x) for n, x in llama.leaves(1).items()}
options = jmudsc.HuggingFace("donor", shard_size=500)
jmudsc.save("out", result_of(leaves), hugging_face=options)
"""
    rig = os.path.dirname(llama.__file__)
    path = os.pathsep.join([rig, *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        stderr=subprocess.DEVNULL,
    )
    assert done.returncode == -9
    assert not (tmp_path / "out").exists()
    merged = llama.leaves(2)
    jmudsc.save(
        tmp_path / "out",
        result_of(merged),
        hugging_face=jmudsc.HuggingFace(tmp_path / "donor"),
    )
    assert sorted(x.name for x in tmp_path.iterdir()) == ["donor", "out"]
    same(jmudsc.load(tmp_path / "out"), merged)


def test_the_one_called_model_counts_of_several(tmp_path):
    leaves = llama.leaves(0)
    folder = llama.write(tmp_path / "model", leaves)
    safetensors.numpy.save_file(llama.leaves(1), folder / "consolidated.safetensors")
    same(jmudsc.load(folder), leaves)


def test_fine_tunes_on_disk_are_merged_by_torch_layout(tmp_path):
    """What goes in is the last axis of a weight: as with transposed kernels."""
    base = llama.leaves(0)
    trees = [base, *(llama.leaves(n, near=base) for n in (1, 2))]
    folders = [
        llama.write(tmp_path / str(n), tree, files=n + 1)
        for n, tree in enumerate(trees)
    ]
    first, *models = [jmudsc.load(folder, lazy=True) for folder in folders]
    for method in ("tsv", "wudi", "iso_c"):
        merged = jmudsc.merge_finetunes(models, first, method)
        out = tmp_path / method
        jmudsc.save(out, merged, hugging_face=jmudsc.HuggingFace(folders[0]))
        kernels = [{n: kernel(n, x) for n, x in tree.items()} for tree in trees]
        flax, *others = [
            {name.replace("weight", "kernel"): x for name, x in tree.items()}
            for tree in kernels
        ]
        axes = {"*norm.kernel": "o", "*embed*": "oo", "*lm_head*": "oo"}
        theirs = jmudsc.merge_finetunes(others, flax, method, axes=axes).variables
        for name, leaf in jmudsc.load(out).items():
            like = np.asarray(theirs[name.replace("weight", "kernel")])
            np.testing.assert_allclose(kernel(name, leaf), like, atol=1e-6)


def kernel(name, leaf):
    return np.asarray(leaf).T if "proj" in name else np.asarray(leaf)


def test_axes_of_the_family_of_gpt2_are_the_other_way_around():
    draw = np.random.default_rng(0).normal
    names = ["h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"]
    axes = transposed_axes({"model_type": "gpt2"}, names)
    assert axes == dict.fromkeys(
        ("*c_attn.weight", "*c_proj.weight", "*c_fc.weight"), "io"
    )
    base = {name: draw(size=(4, 6)).astype("float32") for name in names}
    models = [
        {n: x + draw(size=x.shape).astype("float32") for n, x in base.items()}
        for _ in "ab"
    ]
    merged = jmudsc.merge_finetunes(models, base, "wudi", axes=axes).variables
    flip = lambda tree: {name: x.T for name, x in tree.items()}
    theirs = jmudsc.merge_finetunes(list(map(flip, models)), flip(base), "wudi")
    for name in names:
        np.testing.assert_allclose(merged[name], theirs.variables[name].T)
    assert transposed_axes({"model_type": "llama"}, names) == {}
    assert transposed_axes({}, names) == {}


def test_lists_run_over_the_layers_of_dotted_names():
    base = {name: np.zeros_like(x) for name, x in llama.leaves(0).items()}
    model = {name: np.ones_like(x) for name, x in base.items()}
    merged = jmudsc.merge_finetunes([model], base, lambda_=[0.0, 1.0]).variables
    for n, share in enumerate((0.0, 0.5, 1.0)):
        leaf = merged[f"model.layers.{n}.mlp.up_proj.weight"]
        np.testing.assert_array_equal(leaf, np.full(leaf.shape, share, np.float32))
    assert not merged["lm_head.weight"].any()


def test_shapes_are_known_without_reading(tmp_path):
    folder = llama.write(tmp_path / "model", llama.leaves(0, dtype="bfloat16"), files=2)
    shapes = jmudsc.load_shapes(folder)
    assert shapes["model.norm.weight"] == jax.ShapeDtypeStruct((8,), "bfloat16")
