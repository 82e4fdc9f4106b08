"""A recipe is written after a look at the checkpoints, and works as it says."""

import re

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import tiny_llama as llama
import yaml
from checkpoint_writers import TrainState
from flax import nnx

import jmudsc
from jmudsc import adapters
from jmudsc.checkpoints.save import save_variables
from jmudsc.recipes.init import init_recipe
from jmudsc.recipes.merge import merge_recipe
from jmudsc.recipes.plan import plan_recipe
from jmudsc.recipes.reader import read_recipe

MODEL = """
import flax.linen as nn
import jax

class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(3)(x)

def make():
    return Net(), Net().init(jax.random.key(9), batches[0])

batches = [jax.random.normal(jax.random.key(n), (32, 5)) for n in range(6)]
"""


def drawn(seed, near=None, scale=0.1):
    draw = np.random.default_rng(seed).normal
    shapes = {"Dense_0": (5, 16), "Dense_1": (16, 3)}
    tree = {
        name: {"kernel": draw(size=shape), "bias": draw(size=shape[1:])}
        for name, shape in shapes.items()
    }
    start = near or jax.tree.map(np.zeros_like, {"params": tree})
    size = 1 if near is None else scale
    return jax.tree.map(lambda a, b: np.float32(a + size * b), start, {"params": tree})


def written(folder, **trees):
    for name, tree in trees.items():
        save_variables(folder / name, tree)


def keys_of(folder):
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_strangers_are_matched_once_the_module_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, a=drawn(0), b=drawn(1))
    said = init_recipe(["a", "b"])
    assert "They were trained apart" in said
    assert said.splitlines()[0] == "a: orbax, 4 leaves of 147 entries (float32)"
    assert said.splitlines()[-3:] == [
        "Wrote recipe.yaml",
        "Still missing: my_model.py beside it, with `make` and `batches`.",
        "Next: jmudsc plan recipe.yaml",
    ]
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "recipe.yaml").write_text(text.replace("my_model", "init_net"))
    (tmp_path / "init_net.py").write_text(MODEL)
    assert plan_recipe(tmp_path / "recipe.yaml").problems == ()
    out, _ = merge_recipe(tmp_path / "recipe.yaml")
    assert out == tmp_path / "merged"
    found = jmudsc.load_provenance(out)["recipe"]
    assert (found["method"], found["refit"]) == ("mudsc-zip", "least-squares")


def test_fine_tunes_are_merged_as_they_are_from_the_base_that_is_found(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    start = drawn(0)
    written(tmp_path, a=drawn(1, start), start=start, b=drawn(2, start))
    said = init_recipe(["a", "start", "b"])
    assert "They were trained from one network" in said
    assert "Still missing" not in said
    keys = keys_of(tmp_path)
    assert (keys["base"], keys["method"]) == ("start", "task_arithmetic")
    assert keys["models"] == [{"path": "a"}, {"path": "b"}]
    out, _ = merge_recipe(tmp_path / "recipe.yaml")
    mean = jax.tree.map(lambda *x: sum(x) / 2, drawn(1, start), drawn(2, start))
    for path in ("Dense_0", "Dense_1"):
        np.testing.assert_allclose(
            jmudsc.load(out)["params"][path]["kernel"],
            mean["params"][path]["kernel"],
            rtol=1e-4,
            atol=1e-6,
        )


def test_two_fine_tunes_alone_have_no_base_that_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = drawn(0)
    written(tmp_path, a=drawn(1, start), b=drawn(2, start))
    init_recipe(["a", "b"])
    keys = keys_of(tmp_path)
    assert keys["method"] == "linear"
    assert "base" not in keys
    assert "# base: PATH" in (tmp_path / "recipe.yaml").read_text()
    merge_recipe(tmp_path / "recipe.yaml")


def test_of_a_training_state_the_variables_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        state = TrainState.create(
            apply_fn=None,
            params=drawn(seed)["params"],
            tx=optax.adam(1e-3),
            batch_stats={"mean": np.zeros(16, np.float32)},
            rng=np.zeros(2, np.uint32),
        )
        written(tmp_path, **{name: {**vars(state), "tx": 0, "apply_fn": 0}})
    said = init_recipe(["a", "b"])
    assert re.search(r"^a: orbax, 5 leaves of 163 entries .*, and \d+ other", said)
    assert keys_of(tmp_path)["models"][1] == {
        "path": "b",
        "subtree": ["params", "batch_stats"],
    }
    assert "There are running statistics" in (tmp_path / "recipe.yaml").read_text()
    sources = read_recipe(tmp_path / "recipe.yaml").models
    found = jmudsc.load(tmp_path / "a", sources[0].subtree)
    assert set(found) == {"params", "batch_stats"}


@pytest.mark.parametrize(
    ("tree", "subtree"),
    [
        ({"params": {"w": 1.0}, "batch_stats": {"m": 1.0}}, None),
        ({"params": {"w": 1.0}, "step": 1}, ["params"]),
        ({"state": {"params": {"w": 1.0}, "step": 1}, "epoch": 1}, ["state/params"]),
        ({"model": {"layers": {"w": 1.0}}, "optimizer": {"m": 1.0}}, "model"),
        ({"model": {"w": 1.0}, "head": {"w": 1.0}}, None),
    ],
)
def test_what_is_beside_variables_is_known_by_its_name(
    tree, subtree, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tree = jax.tree.map(lambda x: np.full((2, 2), x, np.float32), tree)
    written(tmp_path, a=tree, b=tree)
    init_recipe(["a", "b"])
    assert keys_of(tmp_path)["models"][0].get("subtree") == subtree


def test_random_states_of_nnx_are_left_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        model = nnx.Sequential(
            nnx.Linear(5, 4, rngs=nnx.Rngs(seed)),
            nnx.Dropout(0.1, rngs=nnx.Rngs(seed)),
        )
        with ocp.StandardCheckpointer() as saver:
            saver.save(tmp_path / name, nnx.state(model))
    said = init_recipe(["a", "b"])
    assert said.startswith("a: orbax, 2 leaves of 24 entries (float32), and 2 other")
    source = read_recipe(tmp_path / "recipe.yaml").models[0]
    found = jmudsc.load(tmp_path / "a", rename=dict(source.rename))
    assert jax.tree.structure(found) == jax.tree.structure(
        adapters.nnx.functions(model).variables
    )


def test_files_of_other_libraries_are_sent_to_convert(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, a=drawn(0))
    with pytest.raises(ValueError, match="got 1 that cannot be read") as failure:
        init_recipe(["a", "b.keras"])
    assert str(failure.value).endswith(
        "b.keras: expected a checkpoint, got a file of another library. Run jmudsc "
        "convert b.keras --like module:function -o DIRECTORY first."
    )


def test_heads_that_differ_are_kept_apart_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    a, b = drawn(0), drawn(1)
    b["params"]["Dense_1"]["kernel"] = b["params"]["Dense_1"]["kernel"][:, :2]
    b["params"]["extra"] = {"kernel": np.ones((2, 2), np.float32)}
    written(tmp_path, a=a, b=b)
    said = init_recipe(["a", "b"])
    assert "In some of them only: 1 leaf\n  params/extra/kernel" in said
    assert "Of several shapes: 1 leaf\n  params/Dense_1/kernel" in said
    assert keys_of(tmp_path)["separate"] == ["params/extra/*", "params/Dense_1/*"]


def test_networks_of_several_kinds_are_told_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, a=drawn(0), b={"other": np.ones((2, 2), np.float32)})
    said = init_recipe(["a", "b"])
    assert "They have no leaf in common." in said
    read_recipe(tmp_path / "recipe.yaml")


def test_the_same_network_twice_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, a=drawn(0), b=drawn(0))
    assert "a and b are the same network: leave out" in init_recipe(["a", "b"])


def test_some_that_share_a_start_among_strangers_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, a=drawn(0), b=drawn(1), c=drawn(2, drawn(0)))
    said = init_recipe(["a", "b", "c"])
    assert "But a and c were trained from one network:" in said
    assert keys_of(tmp_path)["method"] == "mudsc-zip"


def test_directories_of_hugging_face_are_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = llama.leaves(0)
    for seed, name in enumerate(("start", "a", "b")):
        near = {"near": base} if seed else {}
        llama.write(tmp_path / "hub" / name, llama.leaves(seed, **near))
    said = init_recipe(["hub/a", "hub/b", "hub/start"], "recipes/first.yaml")
    assert said.startswith("hub/a: Hugging Face, ")
    recipe = read_recipe(tmp_path / "recipes" / "first.yaml")
    assert recipe.base.path == "../hub/start"
    out, _ = merge_recipe(tmp_path / "recipes" / "first.yaml")
    assert (out / "config.json").is_file()


def test_files_keep_their_format_and_absolute_paths_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        save_variables(tmp_path / f"{name}: 1.npz", drawn(seed))
    init_recipe([tmp_path / "a: 1.npz", "b: 1.npz"])
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert [x.path for x in recipe.models] == [str(tmp_path / "a: 1.npz"), "b: 1.npz"]
    assert recipe.output == "merged.npz"


def test_what_is_there_is_not_replaced_unasked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, a=drawn(0), b=drawn(1))
    (tmp_path / "recipe.yaml").write_text("mine")
    with pytest.raises(FileExistsError) as failure:
        init_recipe(["a", "b"])
    assert str(failure.value) == (
        "recipe.yaml: expected a free path, got one that exists. Choose another with "
        "--out or pass --overwrite."
    )
    init_recipe(["a", "b"], overwrite=True)
    assert "models" in keys_of(tmp_path)


def test_all_that_are_no_checkpoints_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, a=drawn(0))
    with pytest.raises(ValueError, match=r"^init: ") as failure:
        init_recipe(["a", "b", "c"])
    text = str(failure.value)
    assert text.startswith("init: expected 3 checkpoints, got 2 that cannot be read.")
    assert text.count("expected a checkpoint, got nothing") == 2
    with pytest.raises(ValueError, match="two checkpoints or more, got 1") as failure:
        init_recipe(["a"])
    assert not (tmp_path / "recipe.yaml").exists()
