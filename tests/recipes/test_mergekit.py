"""Configurations of mergekit: what each key becomes, and what is refused by name."""

import json
import logging

import numpy as np
import pytest
import tiny_llama as llama
import yaml
from checkpoint_checks import sentence

from jmudsc.checkpoints.load import load, load_record
from jmudsc.recipes.merge import merge_recipe
from jmudsc.recipes.mergekit import is_mergekit, translated
from jmudsc.recipes.mergekit_methods import METHODS
from jmudsc.recipes.plan import plan_recipe
from jmudsc.recipes.plan_report import plan_report
from jmudsc.recipes.reader import parse_recipe, read_recipe

BASE = llama.leaves(0)
MODELS = {name: llama.leaves(n + 1, near=BASE) for n, name in enumerate("abc")}
ONE = "c.yaml: correct 1 mistake:"
NAME = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("mergekit")
    for name, leaves in {"base": BASE, **MODELS}.items():
        llama.write(where / name, leaves)
    return where


def entry(model, **parameters):
    return (
        {"model": model, "parameters": parameters} if parameters else {"model": model}
    )


def content_of(folder, **keys):
    return translated(keys, "c.yaml", folder).content


def refused(folder, keys, *lines):
    several = f"{len(lines)} mistake{'' if len(lines) == 1 else 's'}"
    expected = f"c.yaml: correct {several}:\n" + "\n".join(f"  {x}" for x in lines)
    with pytest.raises(ValueError, match=sentence(expected)):
        translated(keys, "c.yaml", folder)


def merged(folder, out, **keys):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(keys))
    target, _ = merge_recipe(path, output=out)
    return {name: np.asarray(leaf) for name, leaf in load(target).items()}


def of(row):
    """A configuration of a method, with all that it needs."""
    needed = {p.name: 0.4 for p in row.parameters if p.needed}
    own = {name for p in row.parameters if p.per_model for name in [p.name]}
    names = ["a"] if row.most == 1 else ["a", "b"]
    keys = {
        "models": [
            entry(name, **{k: v for k, v in needed.items() if k in own})
            for name in names
        ]
    }
    if shared := {k: v for k, v in needed.items() if k not in own}:
        keys["parameters"] = shared
    if row.base == "needed":
        keys["base_model"] = "base"
    if row.base == "first":
        keys["base_model"] = "a"
    return keys


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_table_merges(method, folder, tmp_path):
    row = METHODS[method]
    keys = {"merge_method": method, **of(row)}
    content = content_of(folder, **keys)
    assert content["method"] == row.here
    assert parse_recipe({**content, "output": "x"}).options.method == row.here
    found = merged(folder, tmp_path / "out", **keys)
    assert found.keys() == BASE.keys()
    assert all(np.isfinite(leaf).all() for leaf in found.values())
    record = load_record(tmp_path / "out").folder
    assert yaml.safe_load((record / "mergekit.yaml").read_text()) == keys


def test_what_is_not_given_is_as_in_mergekit(folder):
    models = [entry("a", weight=1.0), entry("b", weight=1.0)]
    ties = content_of(folder, merge_method="ties", base_model="base", models=models)
    assert ties == {
        "method": "ties",
        "base": "base",
        "models": ["a", "b"],
        "weight": 1.0,
        "normalize": True,
        "lambda_": 1.0,
        "density": 1.0,
    }
    della = content_of(folder, merge_method="della", base_model="base", models=models)
    assert della["density"] == 1.0
    assert della["epsilon"] == 0.0  # mergekit looks at it below a density of 1 only
    assert della["rescale"] == "l1"


def test_filters_and_lists_go_from_models_to_all(folder, tmp_path):
    """Against the sum by hand: filters by substring, lists over layers, else 0."""
    keys = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [
            entry("base"),
            entry("a", weight=[{"filter": "mlp", "value": [0, 0.5, 1]}]),
            entry("b", weight=0.25),
        ],
        "parameters": {
            "weight": [
                {"filter": "self_attn.q", "value": 0.7},
                {"filter": "*", "value": [0.1, 0.3]},
            ],
            "lambda": [{"filter": "norm", "value": 0}, {"value": "5e-1"}],
        },
    }
    found = merged(folder, tmp_path / "out", **keys)

    def weight(name):
        layer = int(name.split(".")[2]) / 2 if ".layers." in name else 0.0
        if "mlp" in name:
            return layer
        return 0.7 if "self_attn.q" in name else 0.1 + 0.2 * layer

    for name, base in BASE.items():
        a, b = MODELS["a"][name] - base, MODELS["b"][name] - base
        scale = 0.0 if "norm" in name else 0.5
        expected = base + scale * (weight(name) * a + 0.25 * b)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)


def test_signs_of_patterns_in_filters_are_taken_as_they_are(folder):
    weight = [{"filter": "a[0]*?", "value": 1.0}, {"value": 2.0}]
    content = content_of(
        folder, merge_method="linear", models=[entry("a", weight=weight)]
    )
    assert content["weight"] == [{"*a[[]0][*][?]*": 1.0, "*": 2.0}]


def test_where_the_base_goes(folder):
    pair = [entry("a"), entry("base")]
    slerp = content_of(
        folder,
        merge_method="slerp",
        base_model="base",
        models=pair,
        parameters={"t": [0, 1]},
    )
    assert slerp["models"] == ["base", "a"]
    assert slerp["t"] == [0.0, 1.0]
    assert "base" not in slerp
    karcher = content_of(
        folder, merge_method="karcher", base_model="base", models=[entry("a")]
    )
    assert karcher["models"] == ["a", "base"]
    both = [entry("a", weight=1), entry("b", weight=2)]
    nuslerp = content_of(folder, merge_method="nuslerp", base_model="base", models=both)
    assert nuslerp["base"] == "base"
    assert nuslerp["weight"] == [1, 2]
    assert "base" not in content_of(folder, merge_method="nuslerp", models=both)


def test_one_slice_of_all_layers_is_its_models(folder):
    def sliced(last, **parameters):
        sources = [
            {**entry("a"), "layer_range": [0, 3]},
            {**entry("b"), "layer_range": [0, last]},
        ]
        return {
            "merge_method": "slerp",
            "base_model": "a",
            "slices": [{"sources": sources, "parameters": parameters}],
        }

    content = content_of(folder, **sliced(3, t=0.2), parameters={"t": 0.9})
    assert content == {"method": "slerp", "models": ["a", "b"], "t": 0.2}
    refused(
        folder,
        {**sliced(2), "parameters": {"t": 0.5}},
        "slices[0].sources[1].layer_range: expected all layers, [0, 3], got [0, 2]. "
        "Merges of some layers are not there here.",
    )
    refused(
        folder,
        {"merge_method": "passthrough", "slices": [{}, {}]},
        "slices: expected one slice of all layers, got 2. Merges of other layers into "
        "another depth are not there here; give values by layer as lists, or by "
        "filters.",
    )


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({}, "float32"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({"dtype": "float32", "out_dtype": "float16"}, "float16"),
    ],
)
def test_the_type_of_what_is_written(keys, dtype, folder, tmp_path):
    models = [entry("a", weight=0.5), entry("b", weight=0.25)]
    given = {"merge_method": "task_arithmetic", "base_model": "base", "models": models}
    found = merged(folder, tmp_path / "out", **given, **keys)
    plain = merged(folder, tmp_path / "plain", **given)
    for name, leaf in found.items():
        assert leaf.dtype == dtype
        np.testing.assert_array_equal(leaf, plain[name].astype(leaf.dtype))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == dtype


def test_wider_types_keep_what_the_sum_has(tmp_path):
    """The sum of bfloat16 models is not rounded to bfloat16 on its way to float32."""
    half = llama.leaves(0, dtype="bfloat16")
    other = llama.leaves(1, near=half, dtype="bfloat16")
    llama.write(tmp_path / "base", half)
    llama.write(tmp_path / "a", other)
    found = merged(
        tmp_path,
        tmp_path / "out",
        merge_method="task_arithmetic",
        base_model="base",
        models=[entry("a", weight=0.3)],
        dtype="float32",
    )
    base, model = (x[NAME].astype(np.float32) for x in (half, other))
    np.testing.assert_allclose(found[NAME], base + 0.3 * (model - base), rtol=1e-6)


def test_the_tokenizer_that_is_asked_for(folder, tmp_path):
    models = [entry("a", weight=1), entry("b", weight=1)]
    given = {"merge_method": "linear", "models": models}
    assert "tokenizer" not in content_of(folder, **given)
    for source, name in {"union": "a", "base": "a", "b": "b"}.items():
        for keys in ({"tokenizer_source": source}, {"tokenizer": {"source": source}}):
            assert content_of(folder, **given, **keys)["tokenizer"] == name
    (folder / "b" / "tokenizer_config.json").write_text('{"model_max_length": 64}')
    merged(folder, tmp_path / "out", **given, tokenizer_source="b")
    told = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert told == {"model_max_length": 64}
    refused(
        folder,
        {
            **given,
            "tokenizer": {"source": "a", "tokens": {"x": {"source": "a"}}, "pad": 1},
        },
        "tokenizer.tokens: expected no such key, which there is in mergekit only. "
        "Bring all models to one vocabulary first.",
        "tokenizer.pad: there is no such key.",
    )


def test_everything_that_is_wrong_is_told_at_once(folder):
    refused(
        folder,
        {
            "merge_method": "ties",
            "base_modle": "base",
            "models": [
                entry("a", weight=1, densty=0.5),
                entry("b", weight="much"),
                entry("missing/model"),
                entry("a+lora"),
                {"model": {"model": {"path": "a"}, "lora": {"path": "b"}}},
            ],
            "parameters": {"rescale": True},
            "dtype": "bfloat",
            "modules": {},
        },
        'base_modle: there is no such key; did you mean "base_model"?',
        "modules: expected no such key, which there is in mergekit only. Merge one "
        "module at a time, or name the leaves in filters.",
        'models[2].model: expected a model on this machine, got "missing/model". '
        "Download it first: nothing is fetched here.",
        'models[3].model: expected a model on this machine, got "a+lora". Fold the '
        "adapter after the + into the model first.",
        "models[4].model: expected the path of a whole model, got one with lora. Fold "
        "adapters first, and name the directory.",
        "base_model: expected a model, which ties needs, got none. Add it.",
        'parameters of a: expected one of weight, density, got "densty"; did you mean '
        '"density"?',
        'weight of b: expected a number, got "much". Correct it.',
        "rescale: expected false, got True. Correct it.",
        'dtype: expected one of float32, bfloat16, float16, float64, got "bfloat"; did '
        'you mean "bfloat16"?',
    )


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (
            {"merge_method": "tise"},
            f'merge_method: expected one of {", ".join(METHODS)}, got "tise"; did '
            'you mean "ties"?',
        ),
        (
            {"models": []},
            "models: expected a list of models, got []. Write one per line.",
        ),
        (
            {"models": None},
            "models: expected models or slices, got none. Give one of the two.",
        ),
        (
            {"models": ["a"]},
            'models[0]: expected a mapping with the key model, got "a". Write model: '
            "PATH.",
        ),
        ({"models": [{}]}, "models[0].model: this key is missing."),
        (
            {"models": [entry("a", weight=[{"filter": "mlp", "value": 1}])]},
            "weight of a: expected a value for every leaf, got one only where filters "
            "match. Add one without a filter.",
        ),
        (
            {"models": [entry("a", weight=[{"filter": "mlp", "value": 1}, 2])]},
            "weight of a: expected values, or mappings with filter and value, got both "
            "in one list. Choose one.",
        ),
        (
            {"parameters": [1]},
            "parameters: expected a mapping, got [1]. Write one parameter per line.",
        ),
        (
            {"models": [entry("a", weight=1, normalize=True)]},
            'parameters of a: expected one of weight, got "normalize".',
        ),
        (
            {"merge_method": "passthrough", "models": [entry("a"), entry("b")]},
            "models: expected 1, got 2. Leave out the others.",
        ),
        (
            {
                "merge_method": "breadcrumbs",
                "base_model": "base",
                "models": [
                    entry("a", weight=1, gamma=0.1),
                    entry("b", weight=1, gamma=0.2),
                ],
            },
            "gamma: expected one value for all models, got 0.1, 0.2. Choose one.",
        ),
        (
            {"tokenizer_source": "a", "tokenizer": {"source": "a"}},
            "tokenizer: expected tokenizer or tokenizer_source, got both. Give one.",
        ),
    ],
)
def test_what_cannot_be_translated_is_one_line(keys, line, folder):
    plain = {"merge_method": "linear", "models": [entry("a", weight=1)]}
    given = {key: x for key, x in {**plain, **keys}.items() if x is not None}
    with pytest.raises(ValueError, match=sentence(f"{ONE}\n  {line}")):
        translated(given, "c.yaml", folder)


def test_what_makes_no_difference_is_told(folder, caplog):
    path = folder / "notes.yaml"
    keys = {
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "models": [entry("a", weight=1, density=0.5), entry("b", weight=1)],
        "parameters": {"int8_mask": True},
    }
    path.write_text(yaml.safe_dump(keys))
    with caplog.at_level(logging.WARNING):
        recipe = read_recipe(path, "out")
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: int8_mask makes no difference here, and is left out.",
        f"{path}: density makes no difference here, and is left out.",
    ]
    assert "density" not in recipe.options.settings


def test_a_plan_shows_the_translation_and_needs_no_output(folder):
    path = folder / "plan.yaml"
    keys = {
        "merge_method": "linear",
        "models": [entry("a", weight=1), entry("b", weight=3)],
    }
    path.write_text(yaml.safe_dump(keys))
    planned = plan_recipe(path)
    assert planned.problems == ()
    text = plan_report(planned)
    assert (
        "Translated from mergekit:\n\n```yaml\nmodels:\n- path: a\n- path: b\n" in text
    )
    assert "weight:\n- 1.0\n- 3.0\n" in text
    expected = (
        f"{path}: expected to be told where to write, got a configuration of mergekit, "
        "which does not say it. Pass --output DIRECTORY."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        merge_recipe(path)


def test_a_translation_is_a_recipe_that_merges_to_the_same_bits(folder, tmp_path):
    """What a plan shows, or is stored with the result, can be used in its place."""
    models = [entry("a", weight=[0.2, 0.9], density=0.6), entry("b", weight=0.4)]
    keys = {"merge_method": "della", "base_model": "base", "models": models}
    keys["parameters"] = {"density": 0.5, "epsilon": 0.1}
    theirs = merged(folder, tmp_path / "theirs", **keys)
    own = folder / "own.yaml"
    own.write_text((tmp_path / "theirs" / "jmudsc" / "recipe.yaml").read_text())
    target, _ = merge_recipe(own, output=tmp_path / "ours")
    ours = load(target)
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf)


def test_models_are_looked_for_beside_the_file_here_and_in_the_cache(
    folder, tmp_path, monkeypatch
):
    snapshot = tmp_path / "hub" / "models--org--net" / "snapshots" / "0a1b"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(folder / "b")
    here = tmp_path / "here"
    here.mkdir()
    (here / "c").symlink_to(folder / "c")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(here)
    only_a = tmp_path / "configs"
    only_a.mkdir()
    (only_a / "a").symlink_to(folder / "a")
    names = ["./a", "org/net", "c", str(folder / "base")]
    content = content_of(
        only_a, merge_method="karcher", models=[entry(name) for name in names]
    )
    assert content["models"] == [
        "a",
        str(snapshot),
        str(here / "c"),
        str(folder / "base"),
    ]


def test_a_configuration_is_known_by_its_method():
    assert is_mergekit({"merge_method": "linear"})
    assert not is_mergekit({"method": "linear", "models": []})
    assert not is_mergekit(["merge_method"])
