"""Models on disk: merged to the same bits as in memory, with little of them there."""

import gc
import re
import time
import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.lazy import is_lazy, LazyArray, parts_of, read_all
from jmudsc.matching import activation_statistics as moments
from jmudsc.matching.methods import METHODS, TABLE

WIDTH, DEPTH = 16, 6


def apply_fn(variables, x):
    for layer in variables["layers"].values():
        x = jnp.maximum(x @ layer["kernel"] + layer["bias"][None], 0)
    return x @ variables["out"]


def network(key, dtype=jnp.float32):
    keys = jax.random.split(key, DEPTH + 1)
    draw = lambda k, *shape: jax.random.normal(k, shape).astype(dtype)
    layers = {
        str(n): {"kernel": draw(k, WIDTH, WIDTH), "bias": draw(k, WIDTH)}
        for n, k in enumerate(keys[1:])
    }
    return {"layers": layers, "out": draw(keys[0], WIDTH, 3)}


@pytest.fixture(scope="module")
def batches():
    keys = jax.random.split(jax.random.key(7), 3)
    return [
        jax.random.normal(k, (size, WIDTH))
        for k, size in zip(keys, (9, 9, 5), strict=True)
    ]


def saved(folder, ending, dtype=jnp.float32):
    """Two networks, and the checkpoints that they are in."""
    networks = [network(jax.random.key(n), dtype) for n in range(2)]
    files = [
        save_variables(folder / f"model-{n}{ending}", x) for n, x in enumerate(networks)
    ]
    return [jmudsc.load(file) for file in files], files


def assert_same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == two.dtype
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_models_on_disk_are_merged_to_the_same_bits(method, batches, tmp_path):
    models, files = saved(tmp_path, ".safetensors", jnp.bfloat16)
    options = {"method": method, "key": jax.random.key(3)}
    expected = jmudsc.merge(apply_fn, models, batches, **options)
    lazy = [jmudsc.load(file, lazy=True) for file in files]
    found = jmudsc.merge(apply_fn, lazy, batches, **options)
    assert is_lazy(found.variables)
    assert not is_lazy(expected.variables)
    out = jmudsc.save(tmp_path / "merged.safetensors", found)
    assert_same_bits(jmudsc.load(out), expected.variables)
    for name, row in expected.assignment.items():
        np.testing.assert_array_equal(found.assignment[name], row)
    assert found.history == expected.history


@pytest.mark.parametrize("ending", ["", ".npz", ".msgpack"])
def test_every_format_is_read_and_written_leaf_by_leaf(ending, batches, tmp_path):
    models, files = saved(tmp_path, ending)
    options = {"method": "weight-zip", "key": jax.random.key(3)}
    expected = jmudsc.merge(apply_fn, models, batches, **options)
    lazy = [jmudsc.load(file, lazy=True) for file in files]
    found = jmudsc.merge(apply_fn, lazy, batches, **options)
    out = jmudsc.save(tmp_path / f"merged{ending}", found)
    assert_same_bits(jmudsc.load(out), expected.variables)


class Watch:
    """How many bytes of lazy arrays there are at once, at the most.

    The runtime drops arrays that nothing refers to a little later, on its own threads:
    before one is read over the limit, it is given the time to.
    """

    def __init__(self, limit):
        self.limit = limit
        self.now = self.most = 0

    def over(self, tree):
        return jax.tree.map(lambda leaf: replace(leaf, fetch=self.fetch(leaf)), tree)

    def fetch(self, leaf):
        def fetch(names):
            array = np.array(leaf.read())
            for _ in range(200):
                if self.now + array.nbytes <= self.limit:
                    break
                gc.collect()
                time.sleep(0.01)
            self.now += array.nbytes
            self.most = max(self.most, self.now)
            weakref.finalize(array, self.gone, array.nbytes)
            return dict.fromkeys(names, array)

        return fetch

    def gone(self, nbytes):
        self.now -= nbytes


@pytest.mark.parametrize("method", ["weight-align", "mudsc-zip"])
def test_little_of_the_models_is_in_memory_at_once(method, batches, tmp_path):
    models, files = saved(tmp_path, "")
    leaf = models[0]["layers"]["0"]["kernel"].nbytes
    model = sum(x.nbytes for x in jax.tree.leaves(models[0]))
    limit = (model if TABLE[method].activations else 4 * leaf) + leaf
    watch = Watch(limit)
    lazy = [watch.over(jmudsc.load(file, lazy=True)) for file in files]
    options = {"method": method, "key": jax.random.key(3), "check": False}
    found = jmudsc.merge(apply_fn, lazy, batches, **options)
    jmudsc.save(tmp_path / "merged", found)
    assert 0 < watch.most <= limit


def test_batches_that_have_no_room_together_are_collected_in_turn(
    batches, tmp_path, monkeypatch
):
    models, files = saved(tmp_path, "")
    spec = jmudsc.infer_spec(apply_fn, models[0], batches[0])
    expected = moments.collect(spec, apply_fn, models, batches)
    lazy = [jmudsc.load(file, lazy=True) for file in files]
    for held in (0, 10**9):
        monkeypatch.setattr(moments, "HELD", held)
        found = moments.collect(spec, apply_fn, lazy, batches)
        for name, kept in expected.items():
            np.testing.assert_array_equal(found[name].comoment, kept.comoment)
            np.testing.assert_array_equal(found[name].mean, kept.mean)


def test_running_statistics_of_models_on_disk_are_reset(tmp_path):
    def update_fn(variables, x):
        return {**variables, "mean": 0.9 * variables["mean"] + 0.1 * x.mean(0)}

    def normed(variables, x):
        return jnp.maximum((x - variables["mean"][None]) @ variables["in"], 0)

    keys = jax.random.split(jax.random.key(0), 2)
    models = [{"mean": jnp.zeros(4), "in": jax.random.normal(k, (4, 6))} for k in keys]
    x = [jnp.arange(12.0).reshape(3, 4)]
    options = {"key": keys[0], "method": "weight-align", "update_fn": update_fn}
    expected = jmudsc.merge(normed, models, x, **options)
    files = [save_variables(tmp_path / str(n), m) for n, m in enumerate(models)]
    lazy = [jmudsc.load(file, lazy=True) for file in files]
    assert_same_bits(
        jmudsc.merge(normed, lazy, x, **options).variables, expected.variables
    )


def test_numbers_of_64_bits_are_read_as_those_that_jax_has(tmp_path):
    np.savez(tmp_path / "model.npz", w=np.ones(3), n=np.int64(2))
    lazy = jmudsc.load(tmp_path / "model.npz", lazy=True)
    assert {name: x.dtype for name, x in lazy.items()} == {"w": "float32", "n": "int32"}
    assert_same_bits(read_all(lazy), {"w": np.ones(3, "f4"), "n": np.int32(2)})


def test_arrays_that_stay_on_disk_are_put_nowhere(tmp_path):
    path = save_variables(tmp_path / "model.npz", {"w": jnp.ones(2)})
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = (
        f"{path}: expected lazy=True or a sharding, got both. Leave sharding out: lazy "
        "arrays are on no device."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        jmudsc.load(path, lazy=True, sharding=where)


def test_text_is_refused_when_it_is_opened(tmp_path):
    np.savez(tmp_path / "model.npz", w=np.ones(3), name=np.array("vit"))
    with pytest.raises(ValueError, match="expected numbers, got text in 1 of 2 leaves"):
        jmudsc.load(tmp_path / "model.npz", lazy=True)


def test_a_value_that_is_not_finite_is_found_on_disk(batches, tmp_path):
    broken = network(jax.random.key(1))
    broken["out"] = broken["out"].at[0, 0].set(jnp.nan)
    models = [network(jax.random.key(0)), broken]
    files = [save_variables(tmp_path / str(n), m) for n, m in enumerate(models)]
    lazy = [jmudsc.load(file, lazy=True) for file in files]
    with pytest.raises(
        ValueError, match="model 1: 1 of 48 values of out are NaN or infinite"
    ):
        jmudsc.merge(apply_fn, lazy, batches, key=jax.random.key(0))


@pytest.mark.parametrize("ending", ["", ".npz", ".safetensors"])
@pytest.mark.parametrize("shape", [(2,), (3, 2)])
def test_a_model_written_anew_after_it_was_opened_is_told(ending, shape, tmp_path):
    path = save_variables(tmp_path / f"model{ending}", {"w": jnp.zeros(2)})
    lazy = jmudsc.load(path, lazy=True)
    lazy["w"].read()
    path.rename(tmp_path / "old")
    save_variables(path, {"w": jnp.ones(shape)})
    expected = (
        f"{path}: expected the checkpoint that was opened, got one that was written "
        "anew since. Load it again."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        lazy["w"].read()


def test_an_error_while_a_leaf_is_read_is_told_as_it_is(tmp_path):
    def fetch(names):
        raise ValueError("parent: cannot be read, copy it again.")

    leaf = LazyArray("w", (2,), np.dtype("f4"), fetch)
    for ending in ("", ".npz", ".safetensors"):
        with pytest.raises(
            ValueError, match=r"^parent: cannot be read, copy it again\.$"
        ):
            save_variables(tmp_path / f"merged{ending}", {"w": leaf})
    assert not list(tmp_path.iterdir())


def test_small_arrays_are_read_together_and_large_ones_alone():
    sizes = {"a": 2**20, "b": 2**20, "c": 2**24, "d": 3}
    lazy = {n: LazyArray(n, (s,), np.dtype("f4"), dict) for n, s in sizes.items()}
    assert [list(part) for part in parts_of(lazy)] == [["a", "b"], ["c"], ["d"]]


def test_a_lazy_array_becomes_an_array_where_one_is_wanted(tmp_path):
    models, files = saved(tmp_path, ".npz")
    lazy = jmudsc.load(files[0], lazy=True)
    assert_same_bits(jax.tree.map(jnp.asarray, lazy), models[0])
    half = np.asarray(lazy["out"], np.float16)
    np.testing.assert_array_equal(half, np.asarray(models[0]["out"], np.float16))


def test_leaves_that_are_alike_are_carried_from_disk_too(tmp_path, batches, key):
    models = [network(jax.random.key(seed)) for seed in range(2)]
    models = [{**x, "ema": jax.tree.map(lambda leaf: 2 * leaf, x)} for x in models]
    for number, model in enumerate(models):
        save_variables(tmp_path / f"{number}.npz", model)
    lazy = [jmudsc.load(tmp_path / f"{number}.npz", lazy=True) for number in range(2)]
    options = {"alike": {"ema/*": "*"}, "key": key}
    found = jmudsc.merge(apply_fn, lazy, batches, **options)
    expected = jmudsc.merge(apply_fn, models, batches, **options)
    jax.tree.map(
        np.testing.assert_array_equal, read_all(found.variables), expected.variables
    )
