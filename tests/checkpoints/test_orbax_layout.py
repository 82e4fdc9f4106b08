"""Where the array tree is in a directory that orbax wrote."""

import checkpoint_writers as writers
import jax.numpy as jnp
import pytest
from checkpoint_checks import sentence

from jmudsc.checkpoints.load import load


def test_nothing_there(tmp_path):
    expected = f"{tmp_path}/run: expected a checkpoint, got nothing. Check the path."
    with pytest.raises(FileNotFoundError, match=sentence(expected)):
        load(tmp_path / "run")


def test_an_empty_directory(tmp_path):
    expected = (
        f"{tmp_path}: expected an orbax checkpoint, got an empty directory. Check the "
        "path."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


def test_a_directory_of_something_else(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "model.npz").write_bytes(b"")
    expected = (
        f"{tmp_path}: expected the directory of an orbax checkpoint, got one with no "
        "_METADATA in it or its folders. Check the path."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


@pytest.mark.parametrize("write", [writers.standard, writers.manager_step])
def test_missing_metadata(write, tmp_path):
    path = write(tmp_path / "run", {"w": jnp.ones(2)})
    next(path.rglob("_METADATA")).unlink()
    expected = (
        f"{path}: expected a finished orbax checkpoint of arrays, got one without "
        "_METADATA: its save was interrupted or files were lost. Use another step or "
        "copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


def test_an_interrupted_save_beside_the_path(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": jnp.ones(2)})
    left = path.rename(tmp_path / "run.orbax-checkpoint-tmp")
    expected = (
        f"{path}: expected a finished checkpoint, got run.orbax-checkpoint-tmp of an "
        "interrupted save beside it. Use another step or save again."
    )
    with pytest.raises(FileNotFoundError, match=sentence(expected)):
        load(path)
    expected = (
        f"{left}: expected a finished checkpoint, got what an interrupted save left. "
        "Use another step or save again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(left)


def test_a_manager_directory_lists_its_steps(tmp_path):
    writers.manager_step(tmp_path, {"w": jnp.ones(2)}, steps=(2, 10))
    (tmp_path / "11.orbax-checkpoint-tmp").mkdir()
    expected = (
        f"{tmp_path}: expected one checkpoint, got a directory of 2 checkpoints. Give "
        f"{tmp_path}/10 or another of them:\n  10\n  2"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_directory_of_flax_checkpoints_lists_them(is_old, tmp_path):
    path = writers.flax_training(tmp_path, {"w": jnp.ones(2)})
    if is_old:
        (path / "_CHECKPOINT_METADATA").unlink()
    expected = (
        f"{tmp_path}: expected one checkpoint, got a directory of 1 checkpoint. Give "
        f"{path} or another of them:\n  checkpoint_7"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


def test_several_items_are_listed(tmp_path):
    step = writers.composite(tmp_path, params={"w": jnp.ones(2)}, state={"n": 1})
    expected = (
        f"{step}: expected one checkpoint, got a directory of 2 items of one. Give "
        f"{step}/state or another of them:\n  state\n  params"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(step)
