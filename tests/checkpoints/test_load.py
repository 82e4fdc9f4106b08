import asyncio
import subprocess
import sys

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding
from orbax.checkpoint import v1

from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import load_provenance, save


def assert_same(found, expected):
    """Same structure, and every leaf the same dtype, shape and bytes."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, two = np.asarray(one), np.asarray(two)
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("write", writers.WRITERS)
def test_every_layout_loads_bit_for_bit(write, tmp_path):
    tree = writers.mixed_tree()
    found = load(write(tmp_path / "run", tree))
    assert_same(found, tree)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))


@pytest.mark.parametrize(
    "write", [writers.single_file, writers.single_file_without_metadata]
)
def test_checkpoints_of_orbax_0_4_load(write, tmp_path):
    tree = writers.linen_variables()
    path = write(tmp_path / "old", tree)
    assert_same(load(path), tree)
    assert_same(load(path, "params"), tree["params"])


@pytest.mark.parametrize("write", [writers.manager_step, writers.flax_training])
def test_parts_of_a_train_state_load_without_its_optimizer(write, tmp_path):
    variables = writers.linen_variables()
    path = write(tmp_path / "run", writers.train_state_of(variables))
    assert_same(load(path, "params"), variables["params"])
    assert_same(load(path, ("params", "batch_stats")), variables)
    assert load(path, "step") == 0


def test_only_what_is_asked_for_is_read(tmp_path):
    tree = writers.mixed_tree()
    path = writers.pytree_without_ocdbt(tmp_path / "run", tree)
    (path / "params.Dense_0.kernel" / "0.0").unlink()
    assert_same(load(path, "masks"), tree["masks"])
    with pytest.raises(ValueError, match="cannot be read"):
        load(path, "params")


@pytest.mark.parametrize(
    ("subtree", "pick"),
    [
        ("params/Dense_0", lambda t: t["params"]["Dense_0"]),
        ("params/Dense_0/bias", lambda t: t["params"]["Dense_0"]["bias"]),
        ("params/layers/1", lambda t: t["params"]["layers"][1]),
        ("params/mlp/~/linear.0/w", lambda t: t["params"]["mlp/~/linear.0"]["w"]),
        ("empty", lambda t: {}),
        (["counts/step", "masks"], lambda t: {"step": 4, "masks": t["masks"]}),
    ],
)
def test_a_nested_subtree_loads(subtree, pick, tmp_path):
    tree = writers.mixed_tree()
    path = writers.standard(tmp_path / "run", tree)
    expected = jax.tree.map(lambda x: jnp.asarray(x), pick(tree))
    assert_same(load(path, subtree), expected)


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


SHARDED = """
import sys, jax, numpy as np, orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
jax.config.update("jax_num_cpu_devices", 4)
rows = NamedSharding(Mesh(jax.devices(), "x"), PartitionSpec("x"))
w = jax.device_put(np.arange(24, dtype=np.float32).reshape(8, 3), rows)
with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(sys.argv[1], {"params": {"w": w}})
"""


def test_a_checkpoint_of_more_devices_loads(tmp_path):
    path = tmp_path / "run"
    subprocess.run([sys.executable, "-c", SHARDED, path], check=True)
    found = load(path, "params/w")
    np.testing.assert_array_equal(found, np.arange(24).reshape(8, 3))


def test_narrowing_64_bits_keeps_values(tmp_path):
    tree = {"count": np.arange(3), "half": np.array([0.5, np.nan]), "rate": 0.1}
    found = load(writers.standard(tmp_path / "run", tree))
    expected = {
        "count": np.arange(3, dtype=np.int32),
        "half": np.array([0.5, np.nan], np.float32),
        "rate": np.float32(0.1),
    }
    assert_same(found, expected)


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


def test_orbax_restores_a_merge_into_the_trees_of_training_code(tmp_path):
    tree = writers.mixed_tree()
    path = save(tmp_path / "merged", writers.result_of(tree))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    for target in (tree, abstract):
        assert_same(ocp.StandardCheckpointer().restore(path, target), tree)
        assert_same(v1.load(path, target), tree)
    assert_same(ocp.StandardCheckpointer().restore(path), tree)
    assert_same(v1.load(path), tree)


def test_orbax_restores_a_merged_nnx_state_into_a_state(tmp_path):
    state = nnx.state(writers.Net(nnx.Rngs(0)))
    path = save(tmp_path / "merged", writers.result_of(state))
    blank = nnx.state(nnx.eval_shape(lambda: writers.Net(nnx.Rngs(0))))
    assert_same(ocp.StandardCheckpointer().restore(path, blank), state)
    assert_same(load(path), nnx.to_pure_dict(state))


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


def test_overwriting_replaces_a_merge_and_leaves_nothing_else(tmp_path):
    path = save(tmp_path / "merged", writers.result_of({"a": jnp.zeros(2)}))
    save(path, writers.result_of({"a": jnp.ones(2)}), overwrite=True)
    assert_same(load(path), {"a": jnp.ones(2)})
    assert [x.name for x in tmp_path.iterdir()] == ["merged"]


def test_overwriting_an_empty_directory(tmp_path):
    path = save(tmp_path, writers.result_of({"a": jnp.ones(2)}), overwrite=True)
    assert_same(load(path), {"a": jnp.ones(2)})


def test_reading_and_writing_work_inside_an_event_loop(tmp_path):
    async def save_and_load():
        return load(save(tmp_path / "merged", writers.result_of({"a": jnp.ones(2)})))

    assert_same(asyncio.run(save_and_load()), {"a": jnp.ones(2)})


def test_importing_checkpoints_does_not_import_orbax():
    code = (
        "import sys, jmudsc.checkpoints.load; "
        "sys.exit('orbax.checkpoint' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
