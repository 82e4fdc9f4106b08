"""What training loops write with orbax is read; what is written, orbax restores."""

import asyncio
import re
import subprocess
import sys

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoint_checks import assert_same, largest_file, sentence
from flax import nnx

from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import save


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


def test_orbax_restores_a_merge_into_the_trees_of_training_code(tmp_path):
    tree = writers.mixed_tree()
    path = save(tmp_path / "merged", writers.result_of(tree))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    for target in (tree, abstract):
        assert_same(ocp.StandardCheckpointer().restore(path, target), tree)
    assert_same(ocp.StandardCheckpointer().restore(path), tree)


@pytest.mark.skipif(
    not hasattr(writers.v1, "load"), reason="orbax 0.11 reads what its v1 wrote alone"
)
def test_version_one_of_orbax_restores_a_merge(tmp_path):
    tree = writers.mixed_tree()
    path = save(tmp_path / "merged", writers.result_of(tree))
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
    for target in (tree, abstract):
        assert_same(writers.v1.load(path, target), tree)
    assert_same(writers.v1.load(path), tree)


def test_orbax_restores_a_merged_nnx_state_into_a_state(tmp_path):
    state = nnx.state(writers.Net(nnx.Rngs(0)))
    path = save(tmp_path / "merged", writers.result_of(state))
    blank = nnx.state(nnx.eval_shape(lambda: writers.Net(nnx.Rngs(0))))
    assert_same(ocp.StandardCheckpointer().restore(path, blank), state)
    assert_same(load(path), nnx.to_pure_dict(state))


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


@pytest.fixture
def big_tree(key):
    return {f"leaf_{i}": jax.random.normal(key, (64, 64)) for i in range(8)}


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b""], ids=["cut", "0"]
)
def test_a_cut_data_file(tmp_path, big_tree, damage):
    path = writers.standard(tmp_path / "run", big_tree)
    file = largest_file(path)
    file.write_bytes(damage(file.read_bytes()))
    expected = (
        re.escape(
            f"{path}: expected a whole orbax checkpoint, got one that cannot be read "
            '(OUT_OF_RANGE: Error reading "leaf_'
        )
        + r"\d/0\.0\".*"
        + re.escape("). Copy it again or use another step.")
    )
    with pytest.raises(ValueError, match=f"^{expected}$") as raised:
        load(path)
    assert len(str(raised.value)) < 400


def test_cut_metadata(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": jnp.ones(2)})
    (path / "_METADATA").write_text('{"tree_metadata": {')
    expected = (
        f"{path}: expected a whole orbax checkpoint, got one that cannot be read "
        "(JSONDecodeError: Expecting property name enclosed in double quotes: line 1 "
        "column 20 (char 19)). Copy it again or use another step."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


REFUSED = {
    "empty": (jnp.ones((0, 3)), "has shape (0, 3), which has no elements"),
    "key": (jax.random.key(0), "is a PRNG key; use jax.random.key_data"),
    "text": (np.array("a"), "has dtype <U1"),
    "object": (object(), "is a object, not an array"),
    "small": (jnp.ones(2, jnp.uint4), "has dtype uint4"),
}


def test_leaves_that_orbax_cannot_hold(tmp_path):
    tree = {"w": jnp.ones(2)} | {name: leaf for name, (leaf, _) in REFUSED.items()}
    lines = [f"  {name}: {REFUSED[name][1]}" for name in sorted(REFUSED)]
    expected = (
        "variables: expected leaves that orbax can hold, got 5 of 6 that it cannot. "
        "Remove, rename or convert them:\n" + "\n".join(lines)
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", writers.result_of(tree))
    assert not list(tmp_path.iterdir())


def test_leaves_that_orbax_would_store_under_one_name(tmp_path):
    tree = {"a": {"b": jnp.ones(1)}, "a.b": jnp.zeros(1)}
    expected = (
        "variables: expected leaves that orbax can hold, got 2 of 2 that it cannot. "
        'Remove, rename or convert them:\n  a/b: is "a.b" in orbax, and so is a.b\n'
        '  a.b: is "a.b" in orbax, and so is a/b'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", writers.result_of(tree))
    assert not list(tmp_path.iterdir())
