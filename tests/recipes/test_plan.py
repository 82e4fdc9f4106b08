"""A plan says what a merge would do, and all that is wrong, from metadata alone."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmudsc
from jmudsc import cli
from jmudsc.checkpoints.save import save_variables
from jmudsc.matching.methods import TABLE
from jmudsc.recipes.machine_speed import measure_rates, Rates
from jmudsc.recipes.merge import spec_of
from jmudsc.recipes.plan import plan_recipe
from jmudsc.recipes.plan_report import plan_report, size_text
from jmudsc.repairs.table import REPAIRS

MODEL = """
import jax

def apply_fn(variables, x):
    return jax.nn.relu(x @ variables["in"]) @ variables["out"]

def deep_fn(variables, x):
    for name in ("0", "1", "2"):
        x = jax.nn.relu(x @ variables[name])
    return x @ variables["3"]

def batches(count):
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(key, (32, 5)) for key in keys]

def stream():
    return iter(batches(2))

def update_fn(variables, x):
    return variables

both = [apply_fn, apply_fn]
three = [apply_fn] * 3

def broken():
    raise RuntimeError("no such disk")

def other_fn(variables, x):
    return x @ variables["hidden"]

def swapped_fn(x, variables):
    return apply_fn(variables, x)
"""

GOOD = {
    "models": ["first", "second.npz"],
    "apply_fn": "plan_model:apply_fn",
    "batches": {"factory": "plan_model:batches", "count": 3},
    "output": "merged",
}
RATES = Rates(1e9, 1e9, 1e9, 1e-7, 1e-7, 0.1)


@pytest.fixture
def project(tmp_path, key):
    (tmp_path / "plan_model.py").write_text(MODEL)
    for name in ("first", "second.npz"):
        leaves = {"in": jnp.ones((5, 8)), "out": jnp.ones((8, 3), jnp.bfloat16)}
        save_variables(tmp_path / name, leaves)
    return tmp_path


def planned(project, change=None, **options):
    path = project / "recipe.yaml"
    path.write_text(json.dumps(GOOD | (change or {})))  # JSON is YAML
    return plan_recipe(path, rates=RATES, **options)


def held(found, stage):
    (one,) = [x for x in found.stages if x.name == stage]
    return {**one.host, **one.device}


@pytest.mark.parametrize("method", jmudsc.METHODS)
def test_the_bytes_are_those_of_the_arrays(project, method):
    found = planned(project, {"method": method})
    assert found.problems == ()
    models = [jmudsc.load(project / name) for name in GOOD["models"]]
    sizes = [sum(x.nbytes for x in jax.tree.leaves(model)) for model in models]
    assert [model.nbytes for model in found.models] == sizes
    assert held(found, "loading") == {"one model": max(sizes), "models": sum(sizes)}
    assert held(found, "combining")["merged"] == sizes[0]
    row = TABLE[method]
    if row.activations:
        sys.path.append(str(project))
        import plan_model

        batches = plan_model.batches(3)
        moments = jmudsc.collect(found.spec, plan_model.apply_fn, models, batches)
        actual = sum(m.mean.nbytes + m.comoment.nbytes for m in moments.values())
        assert held(found, "collecting activations")["moments"] == actual
    stages = [stage.name for stage in found.stages]
    assert ("matching" in stages) == row.matches
    assert ("collecting activations" in stages) == row.activations


def test_the_spec_is_that_of_the_merge(project):
    found = planned(project, {"frozen": ["in"]})
    assert found.spec == spec_of(project / "recipe.yaml")
    assert [m.kind for m in found.models] == ["orbax", "npz"]
    assert found.batches == 3


def test_no_array_is_read(project):
    leaves = {"in": jnp.ones((5, 4096)), "out": jnp.ones((4096, 3))}
    paths = [save_variables(project / name, leaves) for name in ("a.npz", "b.npz")]
    data = bytearray(paths[1].read_bytes())
    data[20000:70000] = bytes(50000)
    paths[1].write_bytes(data)
    assert planned(project, {"models": ["a.npz", "b.npz"]}).problems == ()
    with pytest.raises(ValueError, match="cannot be read"):
        jmudsc.load(paths[1])


def test_more_batches_and_balances_take_longer(project):
    def seconds(**change):
        stages = planned(project, change).stages
        return {stage.name: stage.seconds for stage in stages}

    few, many = (
        seconds(batches={"factory": "plan_model:batches", "count": n}) for n in (1, 11)
    )
    assert many["collecting activations"] > few["collecting activations"]
    assert many["matching"] == few["matching"]
    assert seconds(alpha="auto")["matching"] > few["matching"]
    ended = seconds(refit="least-squares", repair="rescale")
    assert ended["refitting"] > ended["repairing"] > 0


def test_heads_that_are_separate_are_not_merged(project):
    save_variables(project / "third", {"in": jnp.ones((5, 8)), "out": jnp.ones((8, 3))})
    asked = {"models": ["first", "third"], "separate": ["out"], "method": "mudsc-align"}
    found = planned(project, asked)
    assert found.problems == ()
    assert list(found.spec.axes) == ["in"]
    both = held(found, "loading")["models"]
    assert both == sum(model.nbytes for model in found.models)


def test_every_model_may_have_a_function_of_its_own_head(project):
    asked = {"separate": ["out"], "method": "mudsc-align"}
    found = planned(project, {**asked, "apply_fn": "plan_model:both"})
    assert found.problems == ()
    assert found.spec == planned(project, asked).spec
    found = planned(project, {**asked, "apply_fn": "plan_model:three"})
    assert found.problems == (
        "recipe: apply_fn: expected one function for all 2 models or one for each, got "
        "3. Pass as many as models.",
    )


def test_labels_are_told_even_if_a_pattern_of_frozen_ones_is_wrong(project):
    found = planned(project, {"frozen": ["on"]})
    assert len(found.problems) == 1
    assert found.spec == planned(project).spec


def test_everything_that_is_wrong_with_a_recipe_is_said(project):
    save_variables(project / "merged", {"w": jnp.ones(1)})
    found = planned(
        project,
        {
            "models": ["frist", "second.npz"],
            "apply_fn": "plan_model:aply_fn",
            "batches": {"factory": "plan_model:broken"},
            "method": "mudsc-align",
            "alpha": "search",
            "seed": -1,
            "repair": "pooled",
            "refit": "least-squares",
            "reference": "last",
            "colour": "red",
        },
    )
    recipe = project / "recipe.yaml"
    assert list(found.problems) == [
        f"{recipe}: seed: expected a whole number in [0, 2**32), got -1. Leave it out "
        "for 0.",
        f'{recipe}: reference: expected one of first, mean, universe, got "last".',
        f"{recipe}: colour: there is no such key.",
        f"{project}/merged: expected a free path, got one that exists. Choose another "
        "or pass overwrite=True (--overwrite).",
        'recipe: correct 1 import path:\n  apply_fn: expected "aply_fn" in plan_model, '
        'as "plan_model:aply_fn" says, got a module without it; did you mean '
        '"apply_fn"? Correct the name.',
        "recipe: batches: expected an import path that can be followed, got "
        "RuntimeError('no such disk'). Correct what it names.",
        'recipe: alpha: expected a score with "search", got none. Pass score, a '
        'function of variables that is larger for better ones, or alpha="auto", which '
        "needs none.",
        'recipe: repair: expected "pooled" alone, since it sets running statistics '
        "itself, got refit too. Leave out all but one.",
        f"{project}/frist: expected a checkpoint, got nothing. Check the path.",
    ]
    assert found.models[0] is None
    assert found.models[1].nbytes == 5 * 8 * 4 + 8 * 3 * 2
    assert found.stages == ()


def test_batches_of_every_model_are_counted_together(project):
    own = [
        {"path": name, "batches": {"factory": "plan_model:batches", "count": count}}
        for name, count in (("first", 2), ("second.npz", 3))
    ]
    recipe = {key: value for key, value in GOOD.items() if key != "batches"}
    (project / "recipe.yaml").write_text(json.dumps(recipe | {"models": own}))
    found = plan_recipe(project / "recipe.yaml", rates=RATES)
    assert found.problems == ()
    assert found.batches == 5


def test_everything_that_is_wrong_with_the_models_is_said(project):
    leaves = {"in": jnp.ones((5, 9)), "out": jnp.ones((8, 3)), "bias": jnp.ones(8)}
    save_variables(project / "third", leaves)
    save_variables(project / "fourth", {"in": jnp.ones((5, 8))})
    found = planned(
        project,
        {"models": ["first", "third", "fourth"], "frozen": ["on"], "spec": "spec.txt"},
    )
    assert list(found.problems) == [
        "models: model 1 has bias, model 0 has not",
        "models: in is float32[5, 8] in model 0, float32[5, 9] in model 1",
        "models: out is bfloat16[8, 3] in model 0, float32[8, 3] in model 1",
        "models: model 2 lacks out",
        f"{project}/spec.txt: expected a spec, got no such file. Write one with jmudsc "
        "spec RECIPE.",
    ]
    found = planned(project, {"frozen": ["on"], "output": "x.npz"})
    (problem,) = found.problems
    assert problem.startswith(
        "freeze: expected every pattern to match a label or a leaf, got some that "
        'match none:\n  "on'
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"apply_fn": "plan_model:other_fn"},
            "recipe: apply_fn: expected a function that runs on the variables and a "
            "batch, got KeyError('hidden'). Correct the function, or what it is given.",
        ),
        (
            {"apply_fn": "plan_model:swapped_fn"},
            "recipe: apply_fn: expected a function of (variables, batch), got one of "
            "(batch, variables). Swap its arguments.",
        ),
        (
            {"update_fn": "plan_model:other_fn"},
            "recipe: update_fn: expected a function that runs on the variables and a "
            "batch, got KeyError('hidden'). Correct the function, or what it is given.",
        ),
        (
            {"batches": {"factory": "plan_model:stream"}},
            "recipe: batches: expected an iterable that can be read several times, got "
            "a list_iterator, which can be read only once. Pass a list, or an object "
            "whose __iter__ starts anew.",
        ),
        (
            {"batches": {"factory": "plan_model:batches", "count": 0}},
            "recipe: expected at least one batch, got an empty iterable. Pass a list "
            "of batches.",
        ),
        (
            {"separate": ["head/*"]},
            "recipe: expected every pattern to match a leaf of any model, got some "
            "that match none:\n"
            '  "head/*"\nPatterns are of whole leaf paths.',
        ),
        (
            {"separate": ["in"]},
            "recipe: expected every label of merged leaves to have activations before "
            "the separate leaves, got 1 without:\n  P_0\nUse a method that compares "
            "weights alone, or merge what comes before these labels too.",
        ),
    ],
    ids=["model", "swapped", "update", "iterator", "empty", "pattern", "unread"],
)
def test_one_thing_wrong_is_one_problem(project, change, problem):
    assert planned(project, change).problems[-1:] == (problem,)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["jmudsc", *map(str, arguments)])
    cli.main()


def test_the_command_prints_tables(project, monkeypatch, capsys):
    planned(project)
    run(monkeypatch, "plan", project / "recipe.yaml")
    printed = capsys.readouterr().out
    assert printed.startswith("# Plan: mudsc-zip of 2 models over 3 batches\n")
    assert "| second.npz |    npz |      2 |         64 | 208 B |" in printed
    assert "1 label on 2 of 2 leaves" in printed
    assert re.search(r"^- meets an input of the network: in:0$", printed, re.M)
    for stage in ("loading", "checking the spec", "matching", "combining", "writing"):
        assert re.search(rf"^\| {stage} +\|", printed, re.M)
    assert "Nothing is wrong" in printed
    assert not (project / "merged").exists()


def test_the_command_fails_if_anything_is_wrong(project, monkeypatch, capsys):
    planned(project, {"method": "mudsc-zp"})
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "plan", project / "recipe.yaml")
    assert end.value.code == 1
    assert "1 problem:\n\n- " in capsys.readouterr().out


def test_many_labels_of_one_size_are_one_row(project):
    found = planned(project)
    text = plan_report(found)
    assert re.search(r"^\| P_0 +\| +1 \| +8 \| +- \| +- \|$", text, re.M)
    assert size_text(5 * 2**40) == "5.00 TiB"


def test_rates_are_those_of_a_machine():
    rates = measure_rates()
    assert 1e8 < rates.flops < 1e15
    assert all(value > 0 for value in vars(rates).values())
    assert np.isfinite(list(vars(rates).values())).all()


@pytest.mark.parametrize("method", ["weight-align", "mudsc-zip"])
def test_models_without_room_are_planned_to_stay_on_disk(method, project):
    change = {"method": method}
    whole = planned(project, change, memory=2**30)
    found = planned(project, change, memory=0)
    assert found.streamed
    assert not whole.streamed
    names = [stage.name for stage in found.stages]
    assert "loading" not in names
    assert ("checking the spec" in names) == (method == "mudsc-zip")
    assert all("models" not in stage.device for stage in found.stages)
    assert "they stay on disk, read leaf by leaf" in plan_report(found)
    assert "no room" not in plan_report(whole)


def test_passes_and_the_peak_within_a_budget_are_told(project):
    sizes = {"0": (5, 8), "1": (8, 8), "2": (8, 6), "3": (6, 3)}
    models = [{n: jnp.ones(shape) for n, shape in sizes.items()}] * 2
    for name in GOOD["models"]:
        save_variables(project / f"deep-{name}", models[0])
    change = {"models": [f"deep-{name}" for name in GOOD["models"]]}
    change["apply_fn"] = "plan_model:deep_fn"
    whole = planned(project, change, memory=2**30)
    known = held(whole, "collecting activations")["moments"]
    found = planned(project, change, memory=0)
    stage = "collecting activations in 3 passes"
    assert held(found, stage)["moments"] == 4 * (16**2 + 16)  # of the largest label
    assert known == 4 * (2 * (16**2 + 16) + 12**2 + 12)
    assert held(found, "matching")["similarities"] == 0
    assert held(found, "matching")["moments that are remembered"] == 0
    assert f"| {stage} " in plan_report(found)
    sys.path.append(str(project))
    import plan_model

    batches = Passes(plan_model.batches(3))
    jmudsc.collect(found.spec, plan_model.deep_fn, models, batches, budget=0)
    assert batches.times == 3


class Passes:
    """Batches that count how often all of them were read."""

    def __init__(self, batches):
        self.batches = batches
        self.times = 0

    def __iter__(self):
        yield from self.batches
        self.times += 1


def test_what_reads_all_models_nevertheless_is_said(project):
    found = planned(project, {"refit": "least-squares"}, memory=0)
    assert "read all of them nevertheless" in plan_report(found)
    assert found.stages[0].name == "loading"


def test_a_spec_by_hand_must_fit_every_model_whose_head_is_its_own(project):
    (project / "spec.txt").write_text(f"{planned(project).spec}\n")
    leaves = {**jmudsc.load(project / "second.npz"), "extra": jnp.ones(3)}
    save_variables(project / "third", leaves)
    found = planned(
        project,
        {
            "models": ["first", "third"],
            "spec": "spec.txt",
            "separate": ["out", "extra"],
        },
    )
    (problem,) = found.problems
    assert "variables that the spec fits, got others:\n  extra: is not" in problem


@pytest.mark.parametrize("row", REPAIRS, ids=lambda row: row.name)
def test_a_repair_that_reads_batches_is_a_stage_that_takes_time(row, project):
    value = "plan_model:update_fn" if row.option == "update_fn" else row.name
    found = planned(project, {row.option: value})
    assert found.problems == ()
    seconds = {stage.name: stage.seconds for stage in found.stages}
    assert (row.stage in seconds) == row.needs_batches
    if row.needs_batches:
        assert seconds[row.stage] > 0
