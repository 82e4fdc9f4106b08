"""Recipes of fine-tunes: the keys of the function, to the bits of the function."""

import json
import re
import sys

import finetuned
import jax
import numpy as np
import pytest
import tiny
import yaml

import jmudsc
from jmudsc import FINETUNE_METHODS
from jmudsc.checkpoints.save import save_variables
from jmudsc.finetunes import leafwise
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.finetunes.options import FinetuneOptions
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.evaluate import evaluate_recipe
from jmudsc.recipes.landscape import draw_landscape
from jmudsc.recipes.landscape_finetuned import beside
from jmudsc.recipes.machine_speed import Rates
from jmudsc.recipes.merge import merge_recipe, spec_of
from jmudsc.recipes.plan import plan_recipe
from jmudsc.recipes.plan_report import plan_report
from jmudsc.recipes.reader import parse_recipe, read_recipe

NET = finetuned.MLP
BASE = tiny.variables(NET, 0)
MODELS = finetuned.fine_tunes(BASE)
MODULE = """
import sys
sys.path.insert(0, {rig!r})
import finetuned, tiny
import numpy as np

apply_fn = finetuned.MLP.apply_fn

def of(number):
    return finetuned.batches(count=4, size=32)[number::2]

both = finetuned.batches(count=2)

def score(variables):
    return -abs(float(np.asarray(variables["a/bias"]).sum()))

def loss(variables):
    return float(np.square(np.asarray(variables["a/bias"])).sum())

def update_fn(variables, x):
    return variables
"""


@pytest.fixture
def project(tmp_path):
    rig = next(path for path in sys.path if path.endswith("tests/rig"))
    (tmp_path / "ft_functions.py").write_text(MODULE.format(rig=rig))
    save_variables(tmp_path / "base", BASE)
    save_variables(tmp_path / "a.safetensors", MODELS[0])
    save_variables(tmp_path / "b.npz", MODELS[1])
    return tmp_path


def flat(path):
    """Name a file whose names are not to be split."""
    return {"path": path, "separator": ""}


FLAT = [flat("a.safetensors"), flat("b.npz")]


def recipe(project, name="recipe.yaml", **keys):
    content = {"base": "base", "models": FLAT, **keys}
    given = {"output": "merged", **content}
    path = project / name
    plain = {name: value for name, value in given.items() if value is not None}
    path.write_text(yaml.safe_dump(plain, sort_keys=False))
    return path


def equal(found, expected):
    assert set(found) == set(expected)
    assert all(np.array_equal(found[path], expected[path]) for path in expected)
    return True


def of_file(path):
    return jmudsc.load(path, separator="")


NEEDS = {
    "batches": [
        {"factory": "ft_functions:of", "number": 0},
        {"factory": "ft_functions:of", "number": 1},
    ],
    "apply_fn": "ft_functions:apply_fn",
    "score": "ft_functions:score",
}


def needed(row):
    keys = {}
    if row.needs_data:
        keys["apply_fn"] = NEEDS["apply_fn"]
        keys["models"] = [
            {**source, "batches": batches}
            for source, batches in zip(FLAT, NEEDS["batches"], strict=True)
        ]
    if row.runs == "greedy":
        keys["score"] = NEEDS["score"]
    return keys


@pytest.mark.parametrize("name", FINETUNE_METHODS)
def test_every_method_is_one_of_recipes_and_has_the_bits_of_the_function(project, name):
    row = FINETUNE_METHODS[name]
    path, text = merge_recipe(recipe(project, method=name, seed=3, **needed(row)))
    found = of_file(path)
    given = {"key": jax.random.key(3)} if row.is_random else {}
    if row.needs_data:
        xs = finetuned.batches(count=4, size=32)
        given |= {"apply_fn": NET.apply_fn, "batches": [*xs[0::2], *xs[1::2]]}
        given["owners"] = [0, 0, 1, 1]
    if row.runs == "greedy":
        given["score"] = lambda variables: (
            -abs(float(np.asarray(variables["a/bias"]).sum()))
        )
    expected = merge_finetunes(MODELS, BASE, name, **given)
    assert equal(found, expected.variables)
    assert f"- method: {name}\n" in text
    assert "of which no unit was moved" in text
    stored = jmudsc.load_provenance(path)["recipe"]
    assert stored == json.loads(json.dumps(expected.recipe)) | {"seed": 3}
    again = project / "merged" / "jmudsc" / "recipe.yaml"
    copy = project / "again.yaml"
    copy.write_text(again.read_text().replace("output: merged", "output: again"))
    assert equal(of_file(merge_recipe(copy)[0]), found)


OPTIONS = {
    "method": {"a/*": "linear", "*": "ties"},
    "density": {"b/*": [0.5, 1.0], "re:^c": {"c/bias": 0.4, "*": 0.3}, "*": 0.2},
    "weight": [1, 2.0],
    "exclude": ["c/bias"],
    "axes": {"a/kernel": "io"},
}


def test_options_of_leaves_are_written_as_for_the_function(project):
    path, _ = merge_recipe(recipe(project, **OPTIONS, output="merged.safetensors"))
    expected = merge_finetunes(MODELS, BASE, **OPTIONS)
    assert equal(of_file(path), expected.variables)
    assert jmudsc.load_provenance(path)["recipe"]["density"] == OPTIONS["density"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"method": "soup", "base": None},
        OPTIONS,
        {"method": "tsv", "rank": 2, "calibrate": "svc", "calibrate_alpha": 0.5},
        {"lambda_": "search", "score": "m:score", "lambdas": [0.1, 0.2]},
        {"method": "karcher", "base": None, "models": ["a", "b"]},
        {"base": {"path": "b", "subtree": ["params"], "rename": {"x": None}}},
        {"separate": ["head/*"], "apply_fn": "m:f", "batches": "m:b"},
        {"refit": "least-squares", "refit_ridge": 0.5, "check": False, "seed": 4},
        {"models": ["only"], "method": "task_arithmetic", "weight": -1.0},
        {"losses": {"left": "m:loss"}, "update_fn": "m:f", "vectors": "zero"},
    ],
    ids=repr,
)
def test_a_recipe_written_is_read_back(project, more):
    path = recipe(project, **more)
    found = read_recipe(path)
    assert isinstance(found.options, FinetuneOptions)
    path.write_text(dump_recipe(found))
    assert read_recipe(path) == found
    assert dump_recipe(read_recipe(path)) == dump_recipe(found)


def test_what_mergekit_calls_an_option_is_taken(project):
    path = recipe(project, method="ties", int8_mask=True, **{"lambda": 0.3})
    assert read_recipe(path).options.settings == {"lambda_": 0.3}


def refused(content, *mistakes):
    with pytest.raises(ValueError, match=r"^recipe: correct ") as error:
        parse_recipe(content)
    assert str(error.value).split("\n  ")[1:] == list(mistakes)


def test_all_that_is_wrong_is_said_at_once():
    refused(
        {
            "base": 3,
            "models": ["a", "b"],
            "method": "ties",
            "density": [0.5, 2],
            "lambda_": 0.3,
            "lambda": 0.3,
            "gama": 1,
            "rank": 1,
            "calibrate": "scv",
            "spec": "spec.txt",
        },
        "base: expected a path, or a mapping with the key path, got 3.",
        'gama: there is no such key; did you mean "gamma"?',
        'calibrate: expected one of svc, got "scv"; did you mean "svc"?',
        'spec: there is no such key; did you mean "space"?',
        "output: this key is missing.",
        "density[1]: expected a number in (0, 1], got 2.",
        "lambda: expected one of weight, density, normalize, scope, agg, lambda_, got "
        'lambda=0.3; did you mean "lambda_"?',
        "rank: expected one of weight, density, normalize, scope, agg, lambda_, got "
        "rank=1.",
    )
    refused(
        {"models": [], "output": "o", "base": "b", "method": {"*": "tie"}},
        "models: expected a list of one model or more, got []. Write one checkpoint "
        "per line.",
        f"method: expected one of {', '.join(FINETUNE_METHODS)}, got 'tie'; did you "
        'mean "ties"?',
    )


def test_a_search_needs_a_score_and_batches_are_given_to_all_models_or_none():
    refused(
        {
            "models": [{"path": "a", "batches": "m:b"}, "b"],
            "output": "o",
            "base": "b",
            "lambda_": "search",
        },
        "batches: expected them with every model, got none with model 1. Name them "
        "with all models, or once for all.",
        'score: expected a function of variables for lambda_="search", got None.',
    )


@pytest.mark.parametrize("name", ["a.safetensors", "./a.safetensors"])
def test_the_same_checkpoint_twice_is_refused_before_anything_is_read(project, name):
    path = recipe(project, base=name)
    expected = (
        "recipe: base: expected another checkpoint than models: entry 0, got "
        f"{name} for both. Name each model once, and the base as base only."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        merge_recipe(path)


def test_what_the_method_lacks_is_said(project):
    expected = (
        "merge_finetunes: 2 arguments do not fit:\n  apply_fn: expected a function for "
        '"lot", got None\n  batches: expected inputs for "lot", got None'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        merge_recipe(recipe(project, method="lot"))


def test_refit_repair_and_a_search_go_with_a_recipe(project):
    data = {"apply_fn": "ft_functions:apply_fn", "batches": "ft_functions:both"}
    given = {"apply_fn": NET.apply_fn, "batches": finetuned.batches(count=2)}
    refit = recipe(project, method="ties", refit="least-squares", **data)
    found, text = merge_recipe(refit)
    expected = merge_finetunes(MODELS, BASE, "ties", refit="least-squares", **given)
    assert equal(of_file(found), expected.variables)
    assert all(path in text for path in expected.changes)
    searched = recipe(
        project,
        lambda_="search",
        lambdas=[0.2, 0.4],
        score="ft_functions:score",
        output="searched",
    )
    found, text = merge_recipe(searched)
    told = jmudsc.load_provenance(found)["recipe"]
    assert told["lambda_"] in (0.2, 0.4)
    assert set(told["scores"]) == {"0.2", "0.4"}
    assert "scores: 0.2=" in text


def test_separate_leaves_give_a_checkpoint_for_each_model(project):
    path, _ = merge_recipe(recipe(project, method="ties", separate="c/*"))
    for number, model in enumerate(MODELS):
        found = of_file(path / f"model-{number}")
        assert np.array_equal(found["c/kernel"], model["c/kernel"])
    trunks = [{p: x for p, x in m.items() if p[0] != "c"} for m in [BASE, *MODELS]]
    expected = merge_finetunes(trunks[1:], trunks[0], "ties").variables
    assert all(np.array_equal(found[p], expected[p]) for p in expected)


def test_base_models_and_the_merged_network_are_evaluated(project):
    path = recipe(project, losses={"square": "ft_functions:loss"})
    merge_recipe(path)
    rows = evaluate_recipe(path).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == [
        "base",
        "parent A",
        "parent B",
        "merged",
    ]
    expected = float(np.square(MODELS[1]["a/bias"]).sum())
    assert f"{expected:.4f}" in rows[2]


def test_a_spec_needs_a_function(project):
    path = recipe(project)
    expected = (
        f"{path}: expected apply_fn and batches, by which a spec is derived, got no "
        "apply_fn and no batches. Add them to the recipe."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        spec_of(path)
    given = {"apply_fn": "ft_functions:apply_fn", "batches": "ft_functions:both"}
    assert spec_of(recipe(project, **given)).axes.keys() == BASE.keys()


def test_a_method_that_both_have_is_that_of_the_family():
    models = {"models": ["a", "b"], "output": "o", "method": "average"}
    assert isinstance(parse_recipe(models | {"base": "c"}).options, FinetuneOptions)
    matched = parse_recipe(models | {"apply_fn": "m:f", "batches": "m:b"})
    assert not isinstance(matched.options, FinetuneOptions)


def stages(found):
    return {stage.name: stage for stage in found.stages}


RATES = Rates(1e9, 1e9, 1e9, 1e-7, 1e-7, 0.1)
SIZE = sum(leaf.nbytes for leaf in BASE.values())


@pytest.mark.parametrize("name", FINETUNE_METHODS)
def test_a_plan_knows_every_method(project, name):
    row = FINETUNE_METHODS[name]
    found = plan_recipe(recipe(project, method=name, **needed(row)), rates=RATES)
    assert found.problems == ()
    told = stages(found)
    assert list(told)[-2:] == ["merging", "writing"]
    assert ("loading" in told) == (row.needs_data or row.runs is not None)
    assert ("learning from data" in told) == row.needs_data
    assert told["writing"].read == SIZE
    in_memory = "loading" in told
    assert told["loading" if in_memory else "merging"].read == 3 * SIZE
    assert all(stage.seconds is None or stage.seconds > 0 for stage in found.stages)
    text = plan_report(found)
    assert text.startswith(f"# Plan: {name} of 2 models")
    assert "| base" in text
    assert "Nothing is wrong" in text


def test_a_plan_counts_passes_over_the_disk_and_matrices(project):
    tensor = stages(plan_recipe(recipe(project, method="ties"), rates=RATES))
    tree = stages(
        plan_recipe(recipe(project, method="ties", scope="tree"), rates=RATES)
    )
    assert tree.keys() - tensor.keys() == {"finding thresholds"}
    assert tree["finding thresholds"].read == 3 * 3 * SIZE
    added = stages(plan_recipe(recipe(project), rates=RATES))
    spectral = stages(plan_recipe(recipe(project, method="iso_cts"), rates=RATES))
    assert spectral["merging"].seconds > added["merging"].seconds
    two_lists = {"method": {"a/*": "linear", "*": "tsv"}, "exclude": "c/bias"}
    found = plan_recipe(recipe(project, **two_lists), rates=RATES)
    assert found.steps == {
        "linear": 2,
        "tsv, average": 1,
        "tsv, matrices": 2,
        "copied": 1,
    }


def test_a_plan_says_all_that_is_wrong(project):
    (project / "merged").mkdir()
    (project / "merged" / "mine.txt").write_text("mine")
    path = recipe(
        project,
        method="fisher",
        density=0.2,
        apply_fn="ft_functions:nothing",
        exclude=["x/*"],
        models=[*FLAT, "gone.npz"],
    )
    found = plan_recipe(path, rates=RATES)
    assert found.stages == ()
    said = "\n".join(found.problems)
    assert "density: expected one of samples, floor, got density=0.2" in said
    assert "expected a free path, got one that exists" in said
    assert 'expected "nothing" in ft_functions' in said
    assert "gone.npz" in said
    path = recipe(project, method="fisher", exclude=["x/*"], output="other")
    (problem,) = plan_recipe(path, rates=RATES).problems
    assert problem.startswith("recipe: 3 arguments do not fit:")
    assert 'exclude: pattern "x/*" matches no leaf' in problem


@pytest.mark.parametrize(
    ("method", "base", "corner"),
    [
        ("ties", "base", "merged"),
        ("linear", "base", "base"),
        ("linear", None, "parent B, other direction"),
    ],
)
def test_the_landscape_goes_through_fine_tunes_and_their_base(
    project, method, base, corner
):
    pytest.importorskip("matplotlib")
    losses = {"square": "ft_functions:loss"}
    path = recipe(project, method=method, base=base, losses=losses)
    merge_recipe(path)
    where, text = draw_landscape(path, points=3)
    found = json.loads((where / "landscape.json").read_text())
    assert found["corners"] == ["parent A", "parent B", corner]
    assert set(found["networks"]) >= {"parent A", "parent B", "merged"}
    assert ("base" in found["networks"]) == (base is not None)
    assert list(found["line"]["losses"]) == ["as given"]
    assert "off the plane" in text


def test_another_direction_is_as_far_from_a_network_leaf_by_leaf(key):
    found = beside(BASE, MODELS[0], {"a/bias"}, key)
    assert np.array_equal(found["a/bias"], BASE["a/bias"])
    for path in BASE.keys() - {"a/bias"}:
        step, other = found[path] - BASE[path], MODELS[0][path] - BASE[path]
        assert np.linalg.norm(step) == pytest.approx(np.linalg.norm(other), rel=1e-4)
        assert not np.allclose(step, other, atol=1e-3)


def sharded(folder, tree):
    """Write leaves into two files with an index, as large models are stored."""
    folder.mkdir()
    names, place = sorted(tree), {}
    for number in range(2):
        file = f"model-{number}.safetensors"
        own = names[number::2]
        save_variables(folder / file, {name: tree[name] for name in own})
        place |= dict.fromkeys(own, file)
    index = json.dumps({"weight_map": place})
    (folder / "model.safetensors.index.json").write_text(index)
    return folder


@pytest.mark.parametrize("output", ["merged.safetensors", "merged.npz", "merged"])
@pytest.mark.parametrize("memory", [0, 2**40])
def test_a_merge_that_stopped_goes_on_where_it_was_to_the_same_bits(
    project, output, memory, monkeypatch
):
    sharded(project / "shards", MODELS[0])
    models = [{"path": "shards", "separator": ""}, FLAT[1]]
    keys = {"method": "ties", "models": models}
    whole, _ = merge_recipe(recipe(project, **keys, output=f"whole-{output}"))
    path = recipe(project, **keys, output=output)
    merge_leaf, merged, broken = leafwise.merge_leaf, [], ["c/bias"]

    def breaking(job, leaf):
        merged.append(leaf)
        if leaf in broken:
            raise KeyboardInterrupt
        return merge_leaf(job, leaf)

    monkeypatch.setattr(leafwise, "merge_leaf", breaking)
    with pytest.raises(KeyboardInterrupt):
        merge_recipe(path, memory=memory)
    assert not (project / output).exists()
    journal = project / f".{output}.jmudsc-journal"
    done = len((journal / "done").read_text().splitlines()) - 1
    assert done > 0
    merged.clear()
    broken.clear()
    found, _ = merge_recipe(path, memory=memory)
    assert len(merged) == len(BASE) - done
    assert equal(of_file(found), of_file(whole))
    assert not journal.exists()
    if output.endswith(".safetensors"):
        assert found.read_bytes() == whole.read_bytes()
        assert found.stat().st_nlink == 1


@pytest.mark.parametrize(
    "change", [{"density": 0.3}, {"seed": 1}, {"base": flat("other.npz")}, "the models"]
)
def test_leaves_of_another_merge_are_not_taken(project, change, monkeypatch):
    save_variables(project / "other.npz", BASE)
    path = recipe(project, method="ties", output="merged.npz")
    merge_leaf = leafwise.merge_leaf

    def breaking(job, leaf):
        if leaf == "c/kernel":
            raise KeyboardInterrupt
        return merge_leaf(job, leaf)

    monkeypatch.setattr(leafwise, "merge_leaf", breaking)
    with pytest.raises(KeyboardInterrupt):
        merge_recipe(path)
    merged = []
    told = lambda job, leaf: (merged.append(leaf), merge_leaf(job, leaf))[1]
    monkeypatch.setattr(leafwise, "merge_leaf", told)
    if change == "the models":
        (project / "b.npz").unlink()
        save_variables(project / "b.npz", MODELS[1])
    else:
        path = recipe(project, method="ties", output="merged.npz", **change)
    merge_recipe(path)
    assert sorted(merged) == sorted(BASE)
