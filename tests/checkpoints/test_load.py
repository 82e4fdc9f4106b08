"""Trees come back from disk as they were."""

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.flax
from checkpoint_checks import assert_same, names_in, sentence
from checkpoint_writers import dicts_only
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import load_provenance, save


def test_an_nnx_state_loads_as_plain_arrays(tmp_path):
    state = nnx.state(writers.Net(nnx.Rngs(0)))
    path = writers.standard(tmp_path / "state", state)
    assert_same(load(path), nnx.to_pure_dict(state))
    assert_same(load(path, "linear/kernel"), state["linear"]["kernel"][...])


def test_an_nnx_state_inside_a_training_state_loads_as_plain_arrays(tmp_path):
    params = nnx.state(writers.Net(nnx.Rngs(0)), nnx.Param)
    path = writers.manager_step(tmp_path / "run", {"params": params, "step": 3})
    assert_same(load(path, "params"), nnx.to_pure_dict(params))


def test_a_linen_parameter_named_value_stays(tmp_path):
    tree = {"params": {"scale": {"value": jnp.ones(2)}, "bias": jnp.ones(3)}}
    path = writers.standard(tmp_path / "run", tree)
    assert_same(load(path), tree)
    assert_same(load(path, "params/scale"), tree["params"]["scale"])
    only = {"params": {"scale": {"value": jnp.ones(2)}}}
    assert_same(load(save(tmp_path / "merged", writers.result_of(only))), only)


def test_a_typed_key_loads_as_its_data(tmp_path):
    path = writers.standard(tmp_path / "run", {"rng": jax.random.key(3)})
    assert_same(load(path, "rng"), jax.random.key_data(jax.random.key(3)))


def test_leaves_go_where_they_are_asked_to(tmp_path):
    devices = jax.devices()
    path = writers.standard(tmp_path / "run", {"w": jnp.ones((4, 2)), "b": jnp.ones(3)})
    assert load(path, "b").devices() == {devices[0]}
    placed = load(path, sharding=SingleDeviceSharding(devices[1]))
    assert placed["w"].devices() == {devices[1]}
    rows = NamedSharding(Mesh(devices, "x"), PartitionSpec("x"))
    everywhere = NamedSharding(Mesh(devices, "x"), PartitionSpec())
    placed = load(path, sharding={"w": rows, "b": everywhere})
    assert placed["w"].sharding == rows
    np.testing.assert_array_equal(placed["w"], np.ones((4, 2)))


def test_a_merge_comes_back_bit_for_bit(tmp_path):
    tree = writers.mixed_tree()
    path = save(tmp_path / "deep" / "er" / "merged", writers.result_of(tree))
    assert path == tmp_path / "deep" / "er" / "merged"
    assert_same(load(path), tree)
    assert_same(load(path, "params/layers"), tree["params"]["layers"])
    assert [x.name for x in path.parent.iterdir()] == ["merged"]


def test_scalars_come_back_as_jax_would_hold_them(tmp_path):
    tree = {"i": 3, "f": 0.1, "b": True, "c": 1j, "n": np.float64(0.5)}
    found = load(save(tmp_path / "merged", writers.result_of(tree)))
    assert_same(found, {name: jnp.asarray(leaf) for name, leaf in tree.items()})


@pytest.mark.parametrize("ending", ["safetensors", "npz", "msgpack"])
def test_a_merge_comes_back_with_its_tree_and_its_record(ending, tmp_path):
    variables = {
        "mlp/~/linear.0": {"w": jnp.ones(2)},
        "layers": [jnp.zeros(1), dicts_only()],
    }
    if ending != "npz":
        variables["small"] = jnp.ones(3, jnp.bfloat16)
    result = writers.result_of(variables, recipe={"method": "average"})
    path = save(tmp_path / f"merged.{ending}", result, notes={"report.md": "# Merge"})
    assert_same(load(path), variables)
    assert_same(load(path, "layers/1/masks"), dicts_only()["masks"])
    assert load_provenance(path)["recipe"] == {"method": "average"}
    assert list(load_provenance(path)["assignment"]) == ["P_0"]
    assert names_in(tmp_path) == [path.name, f"{path.name}.jmudsc"]
    assert (tmp_path / f"{path.name}.jmudsc" / "report.md").read_text() == "# Merge"
    save(path, writers.result_of({"w": jnp.ones(1)}), overwrite=True)
    assert_same(load(path), {"w": jnp.ones(1)})
    assert names_in(tmp_path) == [path.name, f"{path.name}.jmudsc"]


def test_a_merged_nnx_state_has_the_names_of_its_variables(tmp_path):
    state = nnx.state(writers.Net(nnx.Rngs(0)))
    path = save(tmp_path / "merged.safetensors", writers.result_of(state))
    assert "linear/kernel" in safetensors.flax.load_file(path)
    assert_same(load(path), nnx.to_pure_dict(state))


def test_a_merge_without_its_record_is_a_file_as_any_other(tmp_path):
    path = save(tmp_path / "a.npz", writers.result_of({"a": {"b": jnp.ones(1)}}))
    moved = path.rename(tmp_path / "b.npz")
    assert_same(load(moved), {"a": {"b": jnp.ones(1)}})
    expected = (
        f"{moved}: expected a checkpoint that jmudsc saved, got one without its "
        "record. Load its arrays with jmudsc.load(path)."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_provenance(moved)
    with pytest.raises(
        FileExistsError, match="expected what jmudsc saved, got something"
    ):
        save(moved, writers.result_of({"w": jnp.ones(1)}), overwrite=True)
