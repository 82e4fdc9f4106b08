"""Leaves too large to be held are merged from disk to the bits of those in memory."""

import jax.numpy as jnp
import numpy as np
import pytest

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.finetunes import largest, leafwise, on_disk, piece
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.finetunes.on_disk import OnDisk
from jmudsc.lazy import LazyArray

GENERATOR = np.random.default_rng(3)
SHAPES = {"embedding": (31, 40), "layers/kernel": (3, 20, 11), "bias": (7,)}


def draw(size, base=None):
    found = {}
    for path, shape in SHAPES.items():
        value = GENERATOR.normal(size=shape) * size
        value = value if base is None else value + np.asarray(base[path], np.float32)
        found[path] = jnp.asarray(value, jnp.bfloat16)
    return found


BASE = draw(1.0)
MODELS = [draw(0.2, BASE) for _ in range(2)]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(on_disk, "HELD", 100)
    monkeypatch.setattr(on_disk, "BLOCK", 50)
    monkeypatch.setattr(largest, "FEW", 200)
    monkeypatch.setattr(largest, "SAMPLE", 64)
    for module in (leafwise, piece):
        monkeypatch.setattr(module, "CHUNK", 16)


def on_files(folder, trees):
    for number, tree in enumerate(trees):
        save_variables(folder / f"{number}.safetensors", tree)
    names = [f"{number}.safetensors" for number in range(len(trees))]
    return [jmudsc.load(folder / n, separator="", lazy=True) for n in names]


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "ram"])
def test_a_leaf_read_in_parts_is_merged_to_the_same_bits(
    method, small, tmp_path, monkeypatch
):
    options = {"axes": {"layers/*": "lio"}, "weight": [1.0, -0.5]}
    base = None if method == "linear" else BASE
    expected = merge_finetunes(MODELS, base, method, **options).variables
    base, *models = on_files(tmp_path, [BASE, *MODELS])
    base = None if method == "linear" else base
    read = []
    monkeypatch.setattr(leafwise, "read", lambda job, path: read.append(path))
    merged = merge_finetunes(models, base, method, check=False, **options).variables
    for path in ("embedding", "layers/kernel"):
        found = merged[path].read()
        assert found.tobytes() == np.asarray(expected[path]).tobytes()
        assert found.shape == SHAPES[path]
    assert read == []


def test_what_is_equal_everywhere_is_kept_and_what_is_not_is_told_apart(
    small, tmp_path
):
    last = BASE["embedding"].at[-1, -1].add(1)
    models = [MODELS[0] | {"embedding": BASE["embedding"]} for _ in range(3)]
    base, *lazy = on_files(tmp_path, [BASE, *models])
    same = merge_finetunes(lazy, base, "linear", check=False).variables["embedding"]
    assert same.read().tobytes() == np.asarray(BASE["embedding"]).tobytes()
    (tmp_path / "other").mkdir()
    models = [*models[:2], models[2] | {"embedding": last}]
    base, *lazy = on_files(tmp_path / "other", [BASE, *models])
    found = merge_finetunes(lazy, base, check=False).variables["embedding"].read()
    assert np.asarray(found != BASE["embedding"]).nonzero()[0].tolist() == [30]


def test_what_is_not_finite_is_found(small, tmp_path):
    bad = MODELS[1] | {"embedding": MODELS[1]["embedding"].at[20, 3].set(jnp.nan)}
    base, *lazy = on_files(tmp_path, [BASE, MODELS[0], bad])
    merged = merge_finetunes(lazy, base, "ties", check=False).variables
    with pytest.raises(
        ValueError, match=r"NaN or infinity in embedding of models\[1\]"
    ):
        merged["embedding"].read()


@pytest.mark.parametrize("runs", [1, 3])
def test_any_part_of_a_run_is_read(small, tmp_path, runs):
    (tree,) = on_files(tmp_path, [BASE])
    leaf = tree["layers/kernel"]
    expected = np.asarray(BASE["layers/kernel"]).reshape(runs, -1)
    found = OnDisk(leaf, runs)
    assert found.shape == expected.shape
    size = expected.shape[1]
    places = [(0, 20), (20, 40), (40, 60), (7, 9), (60, 80), (size - 5, size + 9)]
    for run in range(runs):
        for start, stop in places:
            part = found[run, slice(start, stop)]
            assert part.tobytes() == expected[run, start:stop].tobytes()


def test_a_file_that_is_written_anew_is_not_read_in_parts(tmp_path):
    (tree,) = on_files(tmp_path, [BASE])
    leaf = tree["bias"]
    assert leaf.part(2, 5).tobytes() == np.asarray(BASE["bias"])[2:5].tobytes()
    (tmp_path / "0.safetensors").unlink()
    on_files(tmp_path, [MODELS[0]])
    with pytest.raises(ValueError, match="written anew since"):
        leaf.part(2, 5)


def test_however_large_a_leaf_is_merging_it_takes_little_more_than_itself():
    dtype = np.dtype(jnp.bfloat16)
    fetch = lambda names: pytest.fail("reads a whole leaf")

    def table(rows):
        part = lambda start, stop: np.zeros(stop - start, dtype)
        leaf = LazyArray("embedding", (rows, 4096), dtype, fetch, part=part)
        return {"embedding": leaf}

    costs = [
        merge_finetunes([table(rows), table(rows)], table(rows), "ties", check=False)
        .variables["embedding"]
        .cost
        for rows in (100_000, 10_000_000)
    ]
    assert costs[0] == costs[1] < 2**26
