"""Recipes whose models are adapters: each is the base with the adapter folded in."""

import json
import os
import re

import ml_dtypes
import numpy as np
import pytest
import yaml
from loras import draw, llama_with_two, pair, write_peft
from safetensors.numpy import save_file

import jmudsc
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.lora_models import fingerprint_at
from jmudsc.recipes.machine_speed import Rates
from jmudsc.recipes.merge import merge_recipe
from jmudsc.recipes.plan import plan_recipe
from jmudsc.recipes.plan_report import plan_report
from jmudsc.recipes.reader import parse_recipe, read_recipe
from jmudsc.recipes.resolve import load_model

BASE = {
    "model.x.weight": draw(0, 7, 5),
    "model.y.weight": draw(1, 7, 7),
    "model.z.weight": draw(2, 3, 3),
}
RATES = Rates(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
BASE = {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in BASE.items()}


@pytest.fixture
def place(tmp_path):
    save_file(BASE, tmp_path / "base.safetensors")
    for n in range(2):
        arrays = pair(n, "model.x", 5, 7) | pair(n + 20, "model.y", 7, 7)
        small = {name: leaf / 16 for name, leaf in arrays.items()}
        write_peft(tmp_path / f"a{n}", small)
    return tmp_path


def adapters(place):
    return [jmudsc.load_lora(place / f"a{n}") for n in range(2)]


def recipe(place, **keys):
    content = {"base": "base.safetensors", "models": ["a0", "a1"]}
    content |= {"output": "merged.safetensors", **keys}
    file = place / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def merged(place, **keys):
    path, _ = merge_recipe(recipe(place, **keys), overwrite=True)
    return jmudsc.load(path)


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_array_equal(found[name], leaf)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "wudi"])
def test_adapters_are_merged_as_by_the_function_with_no_digit_lost(place, method):
    expected = jmudsc.merge_loras(adapters(place), BASE, method, lambda_=0.5).variables
    found = merged(place, method=method, lambda_=0.5)
    same(found, expected)
    rounded = [jmudsc.fold_lora(a, BASE).variables for a in adapters(place)]
    other = jmudsc.merge_finetunes(rounded, BASE, method, lambda_=0.5).variables
    assert any(np.any(found[name] != other[name]) for name in BASE)


@pytest.mark.parametrize("space", ["core", "knots"])
def test_the_space_is_that_of_the_function(place, space):
    expected = jmudsc.merge_loras(
        adapters(place), BASE, "ties", space=space, density=0.5, weight=[1.0, 2.0]
    )
    keys = {"method": "ties", "space": space, "density": 0.5, "weight": [1.0, 2.0]}
    same(merged(place, **keys), expected.variables)
    full = merged(place, **{**keys, "space": "full"})
    assert any(np.any(full[n] != x) for n, x in expected.variables.items())


def test_adapters_and_whole_models_are_merged_together(place):
    whole = {n: (x.astype("float32") + 0.5).astype(x.dtype) for n, x in BASE.items()}
    save_file(whole, place / "whole.safetensors")
    found = merged(place, models=["a0", "whole.safetensors"])
    wide = {n: x.astype(np.float32) for n, x in BASE.items()}
    folded = jmudsc.fold_lora(adapters(place)[0], wide).variables
    same(found, jmudsc.merge_finetunes([folded, whole], BASE).variables)


def test_an_adapter_of_other_names_is_renamed(place):
    model = {"path": "a0", "rename": {"model.*": "net.*"}}
    moved = {n.replace("model.", "net."): x for n, x in BASE.items()}
    save_file(moved, place / "moved.safetensors")
    found = merged(place, base="moved.safetensors", models=[model])
    expected = jmudsc.fold_lora(
        adapters(place)[0], moved, rename={"model.*": "net.*"}
    ).variables
    same(found, expected)


def test_of_a_hugging_face_base_such_a_directory_is_written(place):
    named = llama_with_two(place)
    models = ["l0", "l1"]
    found = merged(place, base="llama", models=models, output="out", shard_size=1500)
    two = [jmudsc.load_lora(place / name) for name in models]
    for name, leaf in jmudsc.merge_loras(two, named).variables.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-6, atol=1e-6)
    config = json.loads((place / "out" / "config.json").read_text())
    assert config["model_type"] == "llama"
    card = (place / "out" / "README.md").read_text()
    assert "- `l0`" in card
    assert "- `llama`" in card


def test_a_plan_tells_adapters_and_what_does_not_fit(place):
    plan = plan_recipe(recipe(place), rates=RATES)
    assert not plan.problems
    assert "LoRA adapter" in plan_report(plan)
    write_peft(place / "a1", pair(5, "model.w", 5, 7))
    plan = plan_recipe(recipe(place), rates=RATES)
    assert any("got none for 1 of 1" in problem for problem in plan.problems)


def test_a_recipe_keeps_its_space_when_it_is_written_down(place):
    given = read_recipe(recipe(place, space="core"))
    assert parse_recipe(yaml.safe_load(dump_recipe(given))).space == "core"
    assert "space" not in dump_recipe(read_recipe(recipe(place)))


def test_an_adapter_that_is_written_anew_is_another(place):
    given = read_recipe(recipe(place))
    before = [fingerprint_at(given, source) for source in given.sources]
    os.utime(place / "a1" / "adapter_model.safetensors", ns=(1, 1))
    after = [fingerprint_at(given, source) for source in given.sources]
    changed = [a != b for a, b in zip(before, after, strict=True)]
    assert changed == [False, True, False]


def test_in_memory_an_adapter_is_a_network_of_the_type_of_its_base(place):
    given = read_recipe(recipe(place))
    expected = jmudsc.fold_lora(adapters(place)[0], BASE).variables
    found = load_model(given, given.models[0], None)
    same(found, expected)
    assert found["model.x.weight"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"base": None, "method": "linear"},
            "recipe: models: expected a base, into which the adapter a0 is folded, got "
            "none. Add base, the checkpoint that it was trained on.",
        ),
        (
            {"base": "a0", "models": ["a1"]},
            "recipe: base: expected the checkpoint that adapters were trained on, got "
            "the adapter a0. List it among models.",
        ),
        (
            {"models": [{"path": "a0", "subtree": "x", "rename": {"q": None}}, "a1"]},
            "recipe: models: expected path, rename and batches for the adapter a0, got "
            "subtree and rename to null of q. Leave them out.",
        ),
        (
            {"space": "core", "models": ["a0", "whole.safetensors"]},
            "recipe: space: expected adapters as models for core, got "
            "whole.safetensors. Leave space out to merge in full.",
        ),
        (
            {
                "space": "core",
                "models": [{"path": "a0", "rename": {"model.*": "model.*"}}, "a1"],
            },
            "recipe: space: expected one rename for all adapters for core, got "
            "several. Give all the same, or leave space out to merge in full.",
        ),
        (
            {"space": "core", "repair": "pooled"},
            "merge_loras: expected what needs deltas alone, got repair. Fold every "
            "adapter with fold_lora, and call merge_finetunes with the models and the "
            "base.",
        ),
    ],
)
def test_what_is_wrong_is_said(place, keys, message):
    save_file(BASE, place / "whole.safetensors")
    keys = {key: value for key, value in keys.items() if value is not None}
    file = recipe(place, **keys)
    if keys.get("method") == "linear":
        content = yaml.safe_load(file.read_text())
        del content["base"]
        file.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        merge_recipe(file)
    assert not (place / "merged.safetensors").exists()
