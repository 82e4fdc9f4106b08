"""The ways in which training loops write checkpoints, and trees to write."""

import json

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import safetensors.flax
from flax import nnx
from flax.training import checkpoints, train_state

from jmudsc.merging.result import MergeResult
from jmudsc.spec.permutation_spec import PermutationSpec

try:
    from orbax.checkpoint import v1
except ImportError:  # orbax 0.11
    from orbax.checkpoint.experimental import v1


class TrainState(train_state.TrainState):
    batch_stats: dict
    rng: jax.Array


def mixed_tree():
    """Every kind of leaf and container that linen variables may have."""
    return {
        "params": {
            "Dense_0": {
                "kernel": jnp.arange(12.0).reshape(3, 4) / 7,
                "bias": (jnp.arange(4.0) / 3).astype(jnp.bfloat16),
            },
            "layers": [jnp.ones(2, jnp.float16), {"scale": jnp.full(3, -0.0)}],
            "mlp/~/linear.0": {"w": jnp.asarray([jnp.nan, jnp.inf])},
        },
        "masks": {"keep": jnp.array([True, False]), "all": jnp.array(True)},
        "counts": {"seen": jnp.arange(3, dtype=jnp.int8), "step": jnp.int32(4)},
        "empty": {},
        "none": None,
    }


def dicts_only():
    """Leaves of many types and shapes, in dicts with text as keys."""
    return {
        "params": {
            "Dense_0": {
                "kernel": jnp.arange(12.0).reshape(3, 4).T / 7,
                "bias": (jnp.arange(4.0) / 3).astype(jnp.bfloat16),
            },
            "scale": jnp.full((), -0.0),
            "half": jnp.asarray([jnp.nan, jnp.inf], jnp.float16),
            "square": (jnp.arange(9.0).reshape(3, 3) / 7).astype(jnp.bfloat16),
        },
        "masks": {"keep": jnp.array([True, False]), "all": jnp.array(True)},
        "counts": {"seen": jnp.arange(3, dtype=jnp.int8), "step": jnp.int32(4)},
        "wave": jnp.array([1 + 2j], jnp.complex64),
    }


def linen_variables():
    kernel = np.arange(12, dtype=np.float32).reshape(3, 4)
    return {
        "params": {"Dense_0": {"kernel": kernel, "bias": np.ones(4, np.float32)}},
        "batch_stats": {"BatchNorm_0": {"mean": np.full(4, 2, np.float32)}},
    }


def train_state_of(variables, rng=None):
    return TrainState.create(
        apply_fn=None,
        params=variables["params"],
        tx=optax.adam(1e-3),
        batch_stats=variables["batch_stats"],
        rng=jax.random.key(0) if rng is None else rng,
    )


def result_of(variables, assignment=None, **fields):
    assignment = {"P_0": np.array([[0, 1], [1, 0]], np.int32)} | (assignment or {})
    return MergeResult(variables, PermutationSpec({}, {}), assignment, **fields)


def standard(path, tree):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def pytree(path, tree):
    ocp.PyTreeCheckpointer().save(path, tree)
    return path


def pytree_without_ocdbt(path, tree):
    ocp.PyTreeCheckpointer(use_ocdbt=False).save(path, tree)
    return path


def version_one(path, tree):
    save = v1.save if hasattr(v1, "save") else v1.save_pytree  # of orbax 0.11
    save(path, tree)
    return path


def manager_step(path, tree, steps=(2,)):
    with ocp.CheckpointManager(path) as manager:
        for step in steps:
            manager.save(step, args=ocp.args.StandardSave(tree))
        manager.wait_until_finished()
    return path / str(steps[-1])


def manager_item(path, tree):
    composite(path, state={"step": 1}, params=tree)
    return path / "5" / "params"


def lone_manager_item(path, tree):
    return composite(path, params=tree)


def composite(path, **trees):
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    with ocp.CheckpointManager(path) as manager:
        config = ocp.args.JsonSave({"depth": 2})
        manager.save(5, args=ocp.args.Composite(config=config, **items))
        manager.wait_until_finished()
    return path / "5"


def flax_training(path, tree):
    checkpoints.save_checkpoint(path, tree, 7)
    return path / "checkpoint_7"


def single_file(path, tree):
    """Write what orbax 0.4 wrote with Flax's `save_args_from_target`."""
    path.mkdir()
    keys = flatten_keys(jax.tree.map(np.asarray, tree))
    value = {"value_type": "np.ndarray", "skip_deserialize": True}
    metadata = {
        str(key): {
            "key_metadata": [{"key": k, "key_type": 2} for k in key],
            "value_metadata": value,
        }
        for key in keys
    }
    text = json.dumps({"tree_metadata": metadata, "use_zarr3": False})
    (path / "_METADATA").write_text(text)
    return single_file_without_metadata(path, tree)


def single_file_without_metadata(path, tree):
    path.mkdir(exist_ok=True)
    (path / "checkpoint").write_bytes(flax.serialization.to_bytes(tree))
    return path


def flatten_keys(tree):
    return [tuple(k.key for k in keys) for keys, _ in jax.tree.leaves_with_path(tree)]


WRITERS = [
    standard,
    pytree,
    pytree_without_ocdbt,
    version_one,
    manager_step,
    manager_item,
    lone_manager_item,
    flax_training,
]


def restored(path, target):
    return ocp.StandardCheckpointer().restore(path, target)


def flat(variables):
    """Leaves by their names, joined by slashes."""
    leaves = jax.tree.leaves_with_path(variables)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in leaves}


def as_safetensors(path, variables):
    safetensors.flax.save_file(flat(variables), path)


def from_safetensors(path, like):
    return unflat(safetensors.flax.load_file(path), like)


def as_npz(path, variables):
    np.savez_compressed(path, **flat(variables))


def from_npz(path, like):
    """Read what numpy does, in which bfloat16 is two bytes of no type."""
    found = dict(np.load(path, allow_pickle=False))
    typed = {k: x.view("bfloat16") if x.dtype == "V2" else x for k, x in found.items()}
    return unflat(typed, like)


def as_msgpack(path, variables):
    path.write_bytes(flax.serialization.to_bytes(variables))


def from_msgpack(path, like):
    return flax.serialization.from_bytes(like, path.read_bytes())


def unflat(leaves, like):
    assert set(leaves) == set(flat(like))
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[k] for k in flat(like)])


# Format -> how its own library writes and reads, with no word of jmudsc.
LIBRARIES = {
    "orbax": (standard, restored),
    "safetensors": (as_safetensors, from_safetensors),
    "npz": (as_npz, from_npz),
    "msgpack": (as_msgpack, from_msgpack),
}


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.scale = nnx.Param(jnp.ones(()))
