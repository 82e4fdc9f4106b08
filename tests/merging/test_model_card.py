"""The card of a merged model: front matter that the Hub reads, no more than known."""

import dataclasses
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
import yaml
from checkpoint_writers import result_of
from flax import nnx

import jmudsc
from jmudsc import adapters
from jmudsc.merging.model_card import hub_name, model_card, Parent, parent_at


def front_of(card):
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_card_tells_what_was_merged_and_how(tmp_path):
    cached = tmp_path / "models--org--base-7b" / "snapshots" / "0a1b"
    result = dataclasses.replace(result_of({}), recipe={"method": "ties", "models": 2})
    paths = (cached, "org/a", tmp_path / "own", "org/a")
    parents = [parent_at(path) for path in paths]
    front, body = front_of(model_card(result, parents, {}, {}, "merged"))
    assert front == {
        "base_model": ["org/base-7b", "org/a"],
        "library_name": "transformers",
        "tags": ["merge", "jmudsc"],
    }
    assert "Merged without training by `ties`, with jmudsc " in body
    assert "- [org/base-7b](https://huggingface.co/org/base-7b)\n" in body
    assert "- `own`\n" in body
    assert str(tmp_path) not in body
    assert "```yaml\nmethod: ties\nmodels: 2\n```" in body


def test_a_recipe_is_shown_without_its_comments():
    notes = {"recipe.yaml": "# Paths are relative to /home/me\nmethod: linear\n"}
    result = dataclasses.replace(result_of({}), recipe={"method": {"*": "linear"}})
    config = {"_class_name": "UNet"}
    front, body = front_of(model_card(result, (), config, notes, "merged"))
    assert "base_model" not in front
    assert front["library_name"] == "diffusers"
    assert "Merged without training by several methods, with jmudsc" in body
    assert "```yaml\nmethod: linear\n```" in body
    assert "/home/me" not in body


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("org/model.v1", "org/model.v1"),
        ("/data/models/org/model", None),
        ("./model", None),
        ("../model", None),
        ("~/model", None),
        ("model", None),
        ("hub/models--a-b--c.d/snapshots/0", "a-b/c.d"),
    ],
)
def test_names_of_the_hub_are_told_from_paths(parent, name):
    assert hub_name(parent) == name


def test_a_path_that_is_there_is_no_name(tmp_path, monkeypatch):
    (tmp_path / "org" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub_name("org/model") is None


def test_paths_are_shown_as_a_recipe_has_them_and_tell_nothing_of_the_machine(tmp_path):
    assert parent_at(tmp_path / "runs" / "a", "runs/a", "0f") == Parent(
        "runs/a", digest="0f"
    )
    assert parent_at(tmp_path / "runs" / "a").name == "a"
    assert parent_at("~/runs/a").name == "a"
    assert parent_at("s3://bucket/runs/a").name == "s3://bucket/runs/a"
    parents = [Parent("runs/a", digest="0f"), Parent("org/b", is_on_hub=True)]
    _, body = front_of(model_card(result_of({}), parents, None, {}, "merged"))
    assert "- `runs/a`, SHA-256 `0f`\n- [org/b](" in body


def test_a_card_without_verdict_says_why():
    result = dataclasses.replace(result_of({}), recipe={"verdict": "none, since so"})
    front, body = front_of(model_card(result, (), None, {}, "merged"))
    assert front == {"tags": ["merge", "jmudsc"]}
    assert "Verdict: none, since so." in body
    assert "several networks that were in memory." in body


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(4)(x)))


class Other(nnx.Module):
    def __init__(self, rngs):
        layers = [nnx.Linear(5, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)]
        self.layers = nnx.List(layers)

    def __call__(self, x):
        return self.layers[1](nnx.relu(self.layers[0](x)))


BATCHES = [jax.random.normal(jax.random.key(n), (16, 5)) for n in range(6)]


def merged_of(functions, models):
    first, apply_fn, _ = functions(models[0])
    second = functions(models[1]).variables
    key = jax.random.key(0)
    return jmudsc.merge(apply_fn, [first, second], BATCHES, key=key)


def test_a_card_has_the_verdict_and_its_table():
    result = merged_of(adapters.nnx.functions, [Other(nnx.Rngs(n)) for n in (0, 1)])
    _, body = front_of(model_card(result, (), None, {}, "merged"))
    assert result.verdict.sentence in body
    rows = re.findall(r"^\| ([a-z0-9 ]+?) +\|", body, re.M)
    assert rows == [
        *("network", "merged", "parent 0", "parent 1", "average", "ensemble"),
    ]
    assert "2 networks that were in memory." in body


@pytest.mark.parametrize("name", ["merged", "merged.npz", "merged.safetensors"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # orbax, of shardings
def test_the_lines_that_load_a_network_do(library, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if library == "linen":
        states = [Net().init(jax.random.key(n), BATCHES[0]) for n in (0, 1)]
        modules = [(Net(), state) for state in states]
        result = merged_of(lambda each: adapters.linen.functions(*each), modules)
        apply_fn, model = Net().apply, None
    else:
        model = Other(nnx.Rngs(0))
        result = merged_of(adapters.nnx.functions, [model, Other(nnx.Rngs(1))])
        apply_fn = adapters.nnx.functions(model).apply_fn
    jmudsc.save(name, result)
    at = "merged" if name == "merged" else f"{name}.jmudsc"
    card = (tmp_path / at / "README.md").read_text()
    linen, other, alone = re.findall(r"```python\n(.*?)```", card, re.S)
    wanted = apply_fn(result.variables, BATCHES[0])
    scope = {"module": Net(), "batch": BATCHES[0], "variables": result.variables}
    scope["model"] = model
    if library == "linen":
        exec(linen, scope)
        np.testing.assert_array_equal(scope["outputs"], wanted)
    else:
        exec(other, scope)
        np.testing.assert_array_equal(scope["model"](BATCHES[0]), wanted)
    exec(alone, scope)
    found = scope["variables"] if name == "merged" else scope["arrays"]
    bytes_of = lambda tree: sorted(
        np.asarray(x).tobytes() for x in jax.tree.leaves(tree)
    )
    assert bytes_of(found) == bytes_of(result.variables)


def test_a_card_may_be_edited_and_then_is_never_replaced(tmp_path):
    where = tmp_path / "merged"
    result = result_of({"w": np.ones(2, np.float32)})
    jmudsc.save(where, result)
    jmudsc.save(where, result, overwrite=True)
    card = where / "README.md"
    card.write_text(card.read_text() + "And it is mine.\n")
    np.testing.assert_array_equal(jmudsc.load(where)["w"], np.ones(2))
    assert jmudsc.load_provenance(where)["recipe"] == {}
    with pytest.raises(FileExistsError, match=r"merged/README\.md"):
        jmudsc.save(where, result, overwrite=True)


def test_other_files_that_were_edited_are_still_told(tmp_path):
    where = tmp_path / "merged"
    jmudsc.save(where, result_of({"w": np.ones(2, np.float32)}))
    metadata = where / "_METADATA"
    metadata.write_text(metadata.read_text() + " ")
    with pytest.raises(ValueError, match="_METADATA"):
        jmudsc.load(where)
