"""Variables on several devices; what takes several processes is in test_processes."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jmudsc import load
from jmudsc.checkpoints.formats import find, format_at
from jmudsc.checkpoints.provenance import Record
from jmudsc.checkpoints.save import save_variables, save_with_record
from jmudsc.checkpoints.spread import is_spread, read_spread, save_spread
from jmudsc.sharding import along_longest, mesh_of_all


@pytest.fixture
def variables():
    draw = np.random.default_rng(0)
    return {
        "kernel": draw.standard_normal((3, 4)).astype(np.float32),
        "list": [draw.standard_normal(5).astype(np.float16), np.arange(6)],
        "number": np.float32(2.5),
    }


def opened(path):
    return format_at(find(path)).open(find(path))


def sharding_for(path, leaf):
    return along_longest(mesh_of_all(), leaf.shape)


def is_whole(found, expected):
    return jax.tree.all(jax.tree.map(np.array_equal, found, expected))


def test_of_an_orbax_checkpoint_only_parts_are_read(variables, tmp_path):
    save_variables(tmp_path / "model", variables)

    def refusing(names):
        raise AssertionError(names)

    tree = jax.tree.map(
        lambda x: replace(x, fetch=refusing), opened(tmp_path / "model")
    )
    found = read_spread(tree, sharding_for)
    assert is_whole(found, jax.tree.map(jax.numpy.asarray, variables))
    assert found["kernel"].addressable_shards[0].data.shape == (3, 2)
    assert found["list"][0].is_fully_replicated  # five do not divide


def test_files_are_read_whole_and_spread(variables, tmp_path):
    save_variables(tmp_path / "model.npz", variables)
    found = read_spread(load(tmp_path / "model.npz", lazy=True), sharding_for)
    assert is_whole(found["kernel"], variables["kernel"])
    assert found["kernel"].addressable_shards[1].data.shape == (3, 2)


def test_what_has_digests_is_read_whole_and_verified(variables, tmp_path):
    save_with_record(tmp_path / "model", variables, Record())
    tree = load(tmp_path / "model", lazy=True)
    assert all(leaf.fetch_spread is None for leaf in jax.tree.leaves(tree))
    assert is_whole(read_spread(tree, sharding_for)["kernel"], variables["kernel"])


@pytest.mark.parametrize("name", ["model", "model.safetensors"])
def test_what_is_spread_is_saved_with_digests(name, variables, tmp_path):
    tree = jax.tree.map(
        lambda x: jax.device_put(x, along_longest(mesh_of_all(), np.shape(x))),
        variables,
    )
    save_spread(tmp_path / name, tree, Record({"made": "here"}))
    found = load(tmp_path / name)
    assert is_whole(found, jax.tree.map(jax.numpy.asarray, variables))
    assert [x.name for x in tmp_path.iterdir() if x.name.startswith(".")] == []
    with pytest.raises(FileExistsError):
        save_spread(tmp_path / name, tree, Record())


def test_parts_that_come_back_changed_are_an_error(variables, tmp_path, monkeypatch):
    from jmudsc.checkpoints import spread

    tree = {"a": jax.device_put(np.ones(4, np.float32), sharding_for("", np.ones(4)))}
    write = spread.write_spread

    def changing(directory, written):
        write(directory, jax.tree.map(lambda x: x.at[1].set(-1), written))

    monkeypatch.setattr(spread, "write_spread", changing)
    message = "expected to read back what was written, got 1 of 1 leaves changed"
    with pytest.raises(ValueError, match=message):
        save_spread(tmp_path / "model", tree, Record())
    assert not list(tmp_path.iterdir())


def test_arrays_of_this_process_alone_are_not_spread(variables):
    assert not is_spread(variables)
    assert not is_spread(jax.tree.map(jax.numpy.asarray, variables))
