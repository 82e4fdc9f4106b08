"""The record beside variables, and what it proves."""

import json
import re

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from checkpoint_checks import assert_same, largest_file, sentence

from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import load_provenance, save


def test_provenance_comes_back(tmp_path):
    recipe = {
        "method": "mudsc-zip",
        "alpha": 0.1 + 0.2,
        "weights": [1, 2],
        "spec": None,
    }
    assignment = {
        "P_0/heads": np.array([[0, 1, 2], [2, 0, 1]], np.int32),
        "file": np.zeros((2, 3, 0), np.int32),
    }
    result = writers.result_of(
        writers.linen_variables(), assignment, history=(0.25, 0.5), recipe=recipe
    )
    path = save(tmp_path / "merged", result, extra={"note": {10: "a", 9: "b"}})
    found = load_provenance(path)
    assert found["recipe"] == recipe
    assert found["extra"] == {"note": {"10": "a", "9": "b"}}
    assert found["history"] == [0.25, 0.5]
    assert found["versions"]["jax"] == jax.__version__
    assert_same(found["assignment"], dict(result.assignment))
    assert sorted(found["digests"]) == [
        "batch_stats/BatchNorm_0/mean",
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
    ]
    assert set(found["versions"]) == {
        *("flax", "jax", "jmudsc", "numpy", "orbax-checkpoint", "python", "scipy")
    }


@pytest.fixture
def big_tree(key):
    return {f"leaf_{i}": jax.random.normal(key, (64, 64)) for i in range(8)}


@pytest.fixture
def merged(tmp_path, big_tree):
    return save(tmp_path / "merged", writers.result_of(big_tree))


def test_a_flipped_bit_names_the_leaf(merged, big_tree):
    file = largest_file(merged)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    expected = (
        f"{merged}: expected all leaves as jmudsc saved them, got 1 of 8 changed. Copy "
        "the checkpoint again:\n  leaf_"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}[0-7]$") as raised:
        load(merged)
    damaged = str(raised.value)[-6:]
    others = {k: leaf for k, leaf in big_tree.items() if k != damaged}
    whole = load(merged, list(others))
    jax.tree.map(np.testing.assert_array_equal, whole, others)


def test_a_leaf_lost_from_the_metadata_is_named(merged):
    metadata = json.loads((merged / "_METADATA").read_text())
    del metadata["tree_metadata"]["('leaf_3',)"]
    (merged / "_METADATA").write_text(json.dumps(metadata))
    expected = (
        f"{merged}: expected all leaves that jmudsc saved and no others, got 1 that "
        "differs. Copy the checkpoint again:\n  leaf_3: is missing"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(merged, "leaf_0")


def test_a_changed_leaf_of_a_merge_is_named(tmp_path):
    variables = {"a": jnp.ones(2), "b": jnp.ones(2)}
    path = save(tmp_path / "merged.safetensors", writers.result_of(variables))
    safetensors.flax.save_file({"a": jnp.ones(2), "b": jnp.zeros(2)}, path)
    expected = (
        f"{path}: expected all leaves as jmudsc saved them, got 1 of 2 changed. Copy "
        "the checkpoint again:\n  b"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    assert_same(load(path, "a"), jnp.ones(2))


@pytest.mark.parametrize(
    ("old", "new"), [(b'"alpha": 0.5', b'"alpha": 0.6'), (b"{", b""), (b"{", b"[")]
)
def test_a_changed_record(tmp_path, old, new):
    result = writers.result_of({"w": jnp.ones(2)}, recipe={"alpha": 0.5})
    path = save(tmp_path / "merged", result)
    record = path / "jmudsc" / "provenance.json"
    record.write_bytes(record.read_bytes().replace(old, new, 1))
    expected = (
        f"{record}: expected it as it was saved, got it changed or damaged. Copy the "
        "checkpoint again or repeat the merge."
    )
    for read in (load, load_provenance):
        with pytest.raises(ValueError, match=sentence(expected)):
            read(path)


def test_a_lost_record(merged):
    record = merged / "jmudsc" / "provenance.json"
    record.unlink()
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(record))}: .*, got it changed"
    ):
        load(merged)


def test_a_record_of_another_format(merged):
    record = merged / "jmudsc" / "provenance.json"
    record.write_text(json.dumps({"digest": "sealed in another way", "format": 3}))
    expected = (
        f"{record}: expected a record of format 2 or less, got one of 3, of a later "
        "version. Read it with the jmudsc that saved it."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(merged)


@pytest.mark.parametrize("damage", ["cut", "missing", "replaced"])
def test_a_changed_assignment(merged, damage):
    file = merged / "jmudsc" / "assignment.npz"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:100])
    if damage == "missing":
        file.unlink()
    if damage == "replaced":
        np.savez(file, **{"assignment/P_0": np.zeros((2, 2), np.int32)})
    expected = (
        f"{file}: expected it as it was saved, got it changed or damaged. Copy the "
        "checkpoint again or repeat the merge."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_provenance(merged)


def test_provenance_of_a_checkpoint_that_is_no_merge(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": jnp.ones(2)})
    expected = (
        f"{path}: expected a checkpoint that jmudsc saved, got one without its record. "
        "Load its arrays with jmudsc.load(path)."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_provenance(path)
