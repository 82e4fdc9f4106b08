"""What may be written where, and what is never replaced."""

import sys

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_checks import assert_same, sentence

from jmudsc.checkpoints import save as saving
from jmudsc.checkpoints.formats import endings
from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import load_provenance, save


@pytest.fixture
def big_tree(key):
    return {f"leaf_{i}": jax.random.normal(key, (64, 64)) for i in range(8)}


@pytest.fixture
def merged(tmp_path, big_tree):
    return save(tmp_path / "merged", writers.result_of(big_tree))


def test_overwriting_replaces_a_merge_and_leaves_nothing_else(tmp_path):
    path = save(tmp_path / "merged", writers.result_of({"a": jnp.zeros(2)}))
    save(path, writers.result_of({"a": jnp.ones(2)}), overwrite=True)
    assert_same(load(path), {"a": jnp.ones(2)})
    assert [x.name for x in tmp_path.iterdir()] == ["merged"]


def test_overwriting_an_empty_directory(tmp_path):
    path = save(tmp_path, writers.result_of({"a": jnp.ones(2)}), overwrite=True)
    assert_same(load(path), {"a": jnp.ones(2)})


def test_something_at_the_output(merged):
    expected = (
        f"{merged}: expected a free path, got one that exists. Choose another or pass "
        "overwrite=True (--overwrite)."
    )
    with pytest.raises(FileExistsError, match=sentence(expected)):
        save(merged, writers.result_of({"w": jnp.ones(2)}))
    assert len(load(merged)) == 8


def test_who_comes_second_leaves_the_first_its_record(tmp_path, monkeypatch):
    path = tmp_path / "merged.npz"
    write = saving._written

    def after_another(*arguments):
        monkeypatch.setattr(saving, "_written", write)
        save(path, writers.result_of({"w": jnp.ones(2)}, recipe={"alpha": 0.1}))
        return write(*arguments)

    monkeypatch.setattr(saving, "_written", after_another)
    with pytest.raises(
        FileExistsError, match="got what another process made meanwhile"
    ):
        save(path, writers.result_of({"w": jnp.zeros(2)}))
    assert load_provenance(path)["recipe"] == {"alpha": 0.1}
    np.testing.assert_array_equal(load(path)["w"], np.ones(2))


def test_overwriting_something_that_is_no_merge(tmp_path):
    path = writers.standard(tmp_path / "parent", {"w": jnp.ones(2)})
    expected = (
        f"{path}: expected what jmudsc saved, got something else, which overwrite=True "
        "never replaces. Remove it yourself or choose another path."
    )
    with pytest.raises(FileExistsError, match=sentence(expected)):
        save(path, writers.result_of({"w": jnp.zeros(2)}), overwrite=True)
    np.testing.assert_array_equal(load(path, "w"), np.ones(2))


def test_saving_to_a_url_whose_file_system_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    expected = (
        "gs://bucket/merged: expected a file system that is installed, got one without "
        "its package: Please install gcsfs to access Google Storage. Install that, or "
        "copy the checkpoint here."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save("gs://bucket/merged", writers.result_of({"w": jnp.ones(2)}))


@pytest.mark.parametrize("name", ["merged.pt", "merged.H5"])
def test_saving_as_a_file_that_is_not_written(name, tmp_path):
    expected = (
        f"{tmp_path / name}: expected an ending of what can be written "
        f"({', '.join(endings())}; none for an orbax checkpoint), got "
        f"{name[6:].lower()}. Choose another name."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / name, writers.result_of({"w": jnp.ones(2)}))
    assert not list(tmp_path.iterdir())


def test_saving_from_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    expected = (
        f"{tmp_path}/merged: expected variables that are spread over all 2 processes, "
        "got some that this one holds alone. Spread them, or save them in process 0 as "
        "a file, merged.safetensors say."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", writers.result_of({"w": jnp.ones(2)}))
