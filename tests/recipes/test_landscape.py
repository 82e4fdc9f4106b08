"""The landscape and the losses of recipes, on the command line."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import fails, run

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.landscape import figures
from jmudsc.landscape.plane import plane_through
from jmudsc.matching.methods import TABLE

MODEL = """
from pathlib import Path
import jax
import jax.numpy as jnp
import jmudsc

def apply_fn(variables, x):
    return jax.nn.relu(x @ variables["in"]) @ variables["out"]

three = [apply_fn] * 3

def batches():
    keys = jax.random.split(jax.random.key(0), 2)
    return [jax.random.normal(key, (32, 5)) for key in keys]

def loss(number):
    x = batches()[0]
    return lambda v: jnp.mean((apply_fn(v, x)[:, number] - x[:, number]) ** 2)

def itself(variables):
    x = batches()[0]
    first = jmudsc.load(Path(__file__).parent / "first")
    return float(jnp.mean((apply_fn(variables, x) - apply_fn(first, x)) ** 2))

def score(variables):
    return float(variables["in"][0, 0])

def norm_fn(variables, x):
    centred = x @ variables["in"] - variables["mean"][None]
    return jax.nn.relu(centred) @ variables["out"]

def update_fn(variables, x):
    mean = 0.9 * variables["mean"] + 0.1 * (x @ variables["in"]).mean(0)
    return {**variables, "mean": mean}

def norm_loss(variables):
    x = batches()[0]
    return float(jnp.mean((norm_fn(variables, x) - x[:, :2]) ** 2))
"""

RECIPE = """
models: [first, second]
apply_fn: survey_model:apply_fn
batches: {factory: survey_model:batches}
output: merged
losses:
  left: {factory: survey_model:loss, number: 0}
  right: {factory: survey_model:loss, number: 1}
"""


def draw(seed, **leaves):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "in": jax.random.normal(keys[0], (5, 8)),
        "out": jax.random.normal(keys[1], (8, 2)) / 4,
        **leaves,
    }


@pytest.fixture
def project(tmp_path):
    """Two networks drawn apart, with a model and a recipe."""
    for name, network in models().items():
        save_variables(tmp_path / name, network)
    (tmp_path / "survey_model.py").write_text(MODEL)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def models():
    return {"first": draw(1), "second": draw(2)}


def merged_and_drawn(project, monkeypatch, more, recipe=RECIPE):
    """Merge by a recipe and draw its landscape of few points; return the numbers."""
    path = project / "recipe.yaml"
    path.write_text(recipe + more)
    run(monkeypatch, "merge", path)
    run(monkeypatch, "landscape", path, "--points", 3)
    return json.loads((project / "merged-landscape/landscape.json").read_text())


def expected_losses(variables):
    scope = {}
    exec(MODEL, scope)
    tasks = enumerate(("left", "right"))
    return {
        t: pytest.approx(float(scope["loss"](n)(variables)), rel=1e-5) for n, t in tasks
    }


ALIGNED = "parent A", "parent B, aligned", "merged"
CORNERS = {
    "activation-zip": ALIGNED,
    "mudsc-align": ("parent A", "parent B, aligned", "parent B, as given"),
    "average": ("parent A", "parent B, as given", "parent B, aligned"),
}


@pytest.mark.parametrize("method", CORNERS)
def test_a_plane_has_the_losses_of_the_parents_and_the_merged_network(
    project, monkeypatch, capsys, method
):
    found = merged_and_drawn(project, monkeypatch, f"method: {method}\n")
    folder = project / "merged-landscape"
    for name in ("plane.png", "line.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert f"Wrote {folder}" in capsys.readouterr().out
    assert tuple(found["corners"]) == CORNERS[method]
    networks = found["networks"]
    merged = jmudsc.load(project / "merged")
    assert networks["merged"]["losses"] == expected_losses(merged)
    assert networks["merged"]["off_plane"] == pytest.approx(0, abs=1e-4)
    for name, values in networks.items():
        if name.startswith("parent B"):  # in whatever order, it is the same function
            assert values["losses"] == expected_losses(models()["second"])
    assert networks["parent A"]["losses"] == expected_losses(models()["first"])
    lines = found["line"]["losses"]
    for line in lines.values():
        for task in ("left", "right"):
            ends = line[task][0], line[task][-1]
            parents = [expected_losses(model)[task] for model in models().values()]
            assert list(ends) == parents
    if TABLE[method].zips:  # aligned, it is nearer to its parents than it was
        given = plane_through({**models(), "merged": merged}).places["merged"]
        assert np.linalg.norm(networks["merged"]["place"]) < np.linalg.norm(given)
    halves = {"mudsc-align": "aligned", "average": "as given"}
    if method in halves:  # the average is half way between its parents
        for task, loss in expected_losses(merged).items():
            assert lines[halves[method]][task][1] == loss


def test_a_permuted_copy_has_no_barrier_once_aligned(project, monkeypatch, capsys):
    first = models()["first"]
    order = jnp.array([3, 1, 0, 2, 7, 6, 5, 4])
    save_variables(
        project / "copy", {"in": first["in"][:, order], "out": first["out"][order]}
    )
    recipe = RECIPE.replace("second", "copy") + "  itself: survey_model:itself\n"
    found = merged_and_drawn(project, monkeypatch, "method: mudsc-align\n", recipe)
    barriers = found["line"]["barriers"]
    assert barriers["aligned"]["itself"] == pytest.approx(0, abs=1e-6)
    assert barriers["as given"]["itself"] > 0.01
    corners = ["parent A", "parent B, as given", "parent B, shuffled"]
    assert found["corners"] == corners
    assert "| as given " in capsys.readouterr().out


def test_heads_that_are_separate_go_with_their_own_losses(project, monkeypatch):
    found = merged_and_drawn(
        project, monkeypatch, "method: mudsc-align\nseparate: [out]\n"
    )
    networks = {n: jmudsc.load(project / "merged" / f"model-{n}") for n in (0, 1)}
    merged = found["networks"]["merged"]["losses"]
    assert merged["left"] == expected_losses(networks[0])["left"]
    assert merged["right"] == expected_losses(networks[1])["right"]
    parents = list(models().values())
    own = found["networks"]["parent A"]["losses"]["left"]
    assert own == expected_losses(parents[0])["left"]
    own = found["networks"]["parent B, aligned"]["losses"]["right"]
    assert own == expected_losses(parents[1])["right"]


def test_separate_networks_need_a_function_for_each(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "method: mudsc-align\nseparate: [out]\n")
    run(monkeypatch, "merge", path)
    path.write_text(path.read_text().replace("apply_fn\n", "three\n"))
    assert fails(monkeypatch, "landscape", path) == (
        "jmudsc: landscape: apply_fn: expected one function for all 2 models or one "
        "for each, got 3. Pass as many as models."
    )


def test_running_statistics_are_reset_at_every_point(project, monkeypatch):
    for name, network in models().items():
        save_variables(project / f"norm-{name}", {**network, "mean": jnp.ones(8)})
    recipe = """
models: [norm-first, norm-second]
apply_fn: survey_model:norm_fn
update_fn: survey_model:update_fn
batches: {factory: survey_model:batches}
losses: [survey_model:norm_loss]
method: weight-align
output: merged
"""
    found = merged_and_drawn(project, monkeypatch, "", recipe)
    scope = {}
    exec(MODEL, scope)
    first = {**models()["first"], "mean": jnp.ones(8)}
    own = found["networks"]["parent A"]["losses"]["task A"]
    assert own == pytest.approx(scope["norm_loss"](first), rel=1e-5)
    inputs = jnp.concatenate(scope["batches"]())
    reset = {**first, "mean": (inputs @ first["in"]).mean(0)}
    start = found["line"]["losses"]["aligned"]["task A"][0]
    assert start == pytest.approx(scope["norm_loss"](reset), rel=1e-4)
    assert abs(start - own) > 1e-3


def test_a_recipe_has_to_say_how_to_measure(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(re.sub(r"losses:\n.*\n.*\n", "", RECIPE))
    assert fails(monkeypatch, "landscape", path) == (
        f"jmudsc: {path}: expected losses, by which landscape measures, got none. "
        "Add losses: {TASK: module:name}, functions (variables) -> float."
    )


def test_evaluate_judges_as_merge_did_and_needs_no_losses(project, monkeypatch, capsys):
    path = project / "recipe.yaml"
    path.write_text(re.sub(r"losses:\n.*\n.*\n", "", RECIPE))
    run(monkeypatch, "merge", path)
    capsys.readouterr()
    run(monkeypatch, "evaluate", path)
    printed = capsys.readouterr().out
    verdict = jmudsc.load_provenance(project / "merged")["verdict"]
    assert printed.startswith(f"{verdict['sentence']}\n\n| network")
    rows = table_of(printed.partition("\n\n")[2])
    assert list(rows) == list(verdict["networks"])
    for name, told_of in verdict["networks"].items():
        assert rows[name]["cosine"] == f"{told_of['cosine']:.4f}"
    run(monkeypatch, "evaluate", path, "--checkpoint", project / "second")
    told = capsys.readouterr().out
    assert "parent 1" in told
    assert told != printed


def test_a_landscape_is_of_what_was_merged(project, monkeypatch):
    path = project / "recipe.yaml"
    for command in ("landscape", "evaluate"):
        assert fails(monkeypatch, command, path) == (
            f"jmudsc: {project / 'merged'}: expected a merged network, got no such "
            f"file. Run jmudsc merge {path} first."
        )
    run(monkeypatch, "merge", path)
    path.write_text(RECIPE + "method: average\n")
    assert fails(monkeypatch, "landscape", path) == (
        f'jmudsc: {path}: expected an output merged by "average", as the recipe says, '
        f'got one merged by "mudsc-zip". Run jmudsc merge {path} --overwrite first.'
    )
    assert fails(monkeypatch, "landscape", path, "--points", 1) == (
        "jmudsc: landscape: expected 2 points or more along each axis, got 1. Pass a "
        "larger --points."
    )
    assert not (project / "merged-landscape").exists()


def test_only_a_landscape_is_replaced_and_only_on_demand(project, monkeypatch):
    path, folder = project / "recipe.yaml", project / "drawn"
    folder.mkdir()
    arguments = "landscape", path, "--points", 2, "--out", folder
    assert fails(monkeypatch, *arguments) == (
        f"jmudsc: {folder}: expected a new path, got one that exists. Choose another "
        "one with --out, or pass --overwrite."
    )
    (folder / "letter.txt").write_text("dear")
    assert fails(monkeypatch, *arguments, "--overwrite") == (
        f"jmudsc: {folder}: expected an earlier landscape to overwrite, got something "
        "else. Choose another path with --out."
    )
    (folder / "landscape.json").write_text("{}")
    run(monkeypatch, "merge", path)
    run(monkeypatch, *arguments, "--overwrite")
    assert sorted(file.name for file in folder.iterdir()) == [
        "landscape.json",
        "line.png",
        "plane.png",
    ]


def test_without_matplotlib_nothing_is_measured(project, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert fails(monkeypatch, "landscape", project / "recipe.yaml") == (
        "jmudsc: figures: expected matplotlib to draw with, got none. Run pip install "
        "'jmudsc[figures]'."
    )


def test_losses_that_are_not_finite_leave_a_gap_in_the_figures():
    steps = np.linspace(0, 1, 3)
    losses = {"a": np.array([1, np.nan, 2.0]), "b": np.array([1, 2.0, 3])}
    assert figures.draw_lines(steps, {"aligned": losses}, ("A", "B"))
    names = {name: {"w": jnp.eye(3)[n]} for n, name in enumerate("ABM")}
    plane, own = plane_through(names), {name: {"a": 1.0} for name in names}
    grid = {"a": np.array([[1, np.nan, 2], [3, 4, np.inf], [0, 1, 2]])}
    assert figures.draw_plane(plane, steps, steps, grid, own)


def test_evaluate_measures_the_parents_and_the_merged_network(
    project, monkeypatch, capsys
):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "alpha: search\nscore: survey_model:score\n")
    run(monkeypatch, "merge", path)
    capsys.readouterr()
    run(monkeypatch, "evaluate", path)
    rows = table_of(capsys.readouterr().out)
    networks = {
        "parent A": models()["first"],
        "parent B": models()["second"],
        "merged": jmudsc.load(project / "merged"),
    }
    assert list(rows) == list(networks)
    for name, variables in networks.items():
        assert rows[name]["score"] == f"{variables['in'][0, 0]:.4f}"
        total = 0
        for task, loss in expected_losses(variables).items():
            assert rows[name][f"loss of {task}"] == f"{loss.expected:.4f}"
            total += loss.expected
        assert rows[name]["loss of sum"] == f"{total:.4f}"
    run(monkeypatch, "evaluate", path, "--checkpoint", project / "second")
    rows = table_of(capsys.readouterr().out)
    assert rows["merged"] == {**rows["parent B"], "network": "merged"}


def test_evaluate_measures_separate_networks_each_at_its_task(
    project, monkeypatch, capsys
):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "separate: [out]\n")
    run(monkeypatch, "merge", path)
    capsys.readouterr()
    run(monkeypatch, "evaluate", path)
    rows = table_of(capsys.readouterr().out)
    merged = [jmudsc.load(project / "merged" / f"model-{n}") for n in (0, 1)]
    networks = {"parents": list(models().values()), "merged": merged}
    assert list(rows) == list(networks)
    for name, (left, right) in networks.items():
        expected = expected_losses(left)["left"], expected_losses(right)["right"]
        found = rows[name]["loss of left"], rows[name]["loss of right"]
        assert found == tuple(f"{loss.expected:.4f}" for loss in expected)


def table_of(text):
    """Read the first table in Markdown: first cell of a row -> title -> cell."""
    rows = text.partition("\n\n")[0].splitlines()
    lines = [[c.strip() for c in x.split("|")[1:-1]] for x in rows if x]
    return {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
