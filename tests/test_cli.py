"""The command line, in process; help as a process of its own."""

import inspect
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import fails, run

import jmudsc
from jmudsc import cli
from jmudsc.checkpoints.save import save_variables

MODEL = """
import jax

def apply_fn(variables, x):
    return jax.nn.relu(x @ variables["in"]) @ variables["out"]

def batches(count):
    keys = jax.random.split(jax.random.key(0), count)
    return [jax.random.normal(key, (32, 5)) for key in keys]

def score(variables):
    return 1.0
"""

RECIPE = """
models: [first, second]
apply_fn: cli_model:apply_fn
batches: {factory: cli_model:batches, count: 3}
method: mudsc-align
output: merged
"""


@pytest.fixture
def project(tmp_path, key):
    """Two checkpoints, the second the first permuted, with a model and a recipe."""
    keys = jax.random.split(key, 2)
    first = {
        "in": jax.random.normal(keys[0], (5, 8)),
        "out": jax.random.normal(keys[1], (8, 3)),
    }
    order = jnp.array([3, 1, 0, 2, 7, 6, 5, 4])
    second = {"in": first["in"][:, order], "out": first["out"][order]}
    save_variables(tmp_path / "first", first)
    save_variables(tmp_path / "second", second)
    (tmp_path / "cli_model.py").write_text(MODEL)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_merge_writes_a_checkpoint_with_its_report_and_recipe(
    project, monkeypatch, capsys
):
    run(monkeypatch, "merge", project / "recipe.yaml")
    printed = capsys.readouterr().out
    assert "- method: mudsc-align" in printed
    assert f"Wrote {project / 'merged'}" in printed
    merged, first = jmudsc.load(project / "merged"), jmudsc.load(project / "first")
    np.testing.assert_array_equal(merged["in"], first["in"])
    assert jmudsc.load_provenance(project / "merged")["recipe"]["seed"] == 0
    notes = project / "merged" / "jmudsc"
    assert (notes / "report.md").read_text() in printed
    card = (project / "merged" / "README.md").read_text()
    assert re.findall(r"^- `(\w+)`, SHA-256 `[0-9a-f]{64}`$", card, re.M) == [
        *("first", "second")
    ]
    assert "method: mudsc-align" in card
    assert str(project) not in card
    parents = jmudsc.load_provenance(project / "merged")["parents"]
    assert [parent["name"] for parent in parents] == ["first", "second"]
    assert all(f"`{parent['sha256']}`" in card for parent in parents)
    recipe = (notes / "recipe.yaml").read_text()
    assert recipe.startswith(f"# Paths and modules are relative to {project}\n")
    assert "cli_model:apply_fn" in recipe


def test_models_in_files_of_other_names_are_merged_into_a_file(
    project, monkeypatch, capsys
):
    first = jmudsc.load(project / "first")
    second = jmudsc.load(project / "second")
    flat = {"net.up.weight": second["in"], "net.down.weight": second["out"]}
    np.savez(project / "second.npz", **flat, steps=np.int32(3))
    path = project / "recipe.yaml"
    path.write_text(
        RECIPE.replace(
            "second]",
            "{path: second.npz, separator: ., rename: {steps: null, net/*/weight: '*', "
            "up: in, down: out}}]",
        ).replace("output: merged", "output: merged.safetensors")
    )
    run(monkeypatch, "merge", path)
    out = project / "merged.safetensors"
    assert f"Wrote {out}" in capsys.readouterr().out
    np.testing.assert_array_equal(jmudsc.load(out)["in"], first["in"])
    notes = project / "merged.safetensors.jmudsc"
    assert "net/*/weight: '*'" in (notes / "recipe.yaml").read_text()
    path.write_text(path.read_text() + "separate: [out]\n")
    run(monkeypatch, "merge", path)
    assert f"Wrote {project / 'merged'}" in capsys.readouterr().out
    for number in range(2):
        found = jmudsc.load(project / "merged" / f"model-{number}.safetensors")
        np.testing.assert_allclose(found["out"], first["out"], rtol=1e-6)


def test_a_merge_that_is_there_is_only_replaced_on_demand(project, monkeypatch):
    run(monkeypatch, "merge", project / "recipe.yaml")
    expected = (
        f"jmudsc: {project / 'merged'}: expected a free path, got one that exists. "
        "Choose another or pass overwrite=True (--overwrite)."
    )
    assert fails(monkeypatch, "merge", project / "recipe.yaml") == expected
    run(monkeypatch, "merge", project / "recipe.yaml", "--overwrite")


def test_the_output_may_be_given_in_the_place_of_that_of_the_recipe(
    project, monkeypatch, capsys
):
    monkeypatch.chdir(project)
    run(monkeypatch, "plan", "recipe.yaml", "--output", "other.npz")
    run(monkeypatch, "merge", "recipe.yaml", "--output", "other.npz")
    assert f"Wrote {project / 'other.npz'}" in capsys.readouterr().out
    assert (project / "other.npz").is_file()
    assert not (project / "merged").exists()


def test_spec_prints_the_spec(project, monkeypatch, capsys):
    run(monkeypatch, "spec", project / "recipe.yaml")
    printed = capsys.readouterr().out
    assert "1 label on 2 of 2 leaves" in printed
    assert re.search(r"^in +5, P_0$", printed, re.M)


def test_what_spec_prints_can_be_changed_and_merged_by(project, monkeypatch, capsys):
    run(monkeypatch, "spec", project / "recipe.yaml")
    printed = capsys.readouterr().out
    (project / "spec.txt").write_text(printed.replace("P_0", "hidden"))
    path = project / "by_hand.yaml"
    path.write_text(RECIPE + "spec: spec.txt\n")
    run(monkeypatch, "merge", path)
    assert "| hidden |" in capsys.readouterr().out
    first = jmudsc.load(project / "first")
    np.testing.assert_array_equal(jmudsc.load(project / "merged")["in"], first["in"])
    assert "spec: spec.txt" in (project / "merged/jmudsc/recipe.yaml").read_text()
    kept = (project / "merged/jmudsc/spec.txt").read_text()
    assert kept.split() == (project / "spec.txt").read_text().split()


def test_frozen_labels_of_a_recipe_are_averaged_as_they_are(
    project, monkeypatch, capsys
):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "frozen: [out]\n")
    run(monkeypatch, "merge", path)
    assert "- frozen: out\n" in capsys.readouterr().out
    merged, *models = (
        jmudsc.load(project / name)["in"] for name in ("merged", "first", "second")
    )
    np.testing.assert_allclose(merged, (models[0] + models[1]) / 2, rtol=1e-6)
    run(monkeypatch, "spec", path)
    printed = capsys.readouterr().out
    assert '  (fixed: is frozen by "out")\n' in printed
    (project / "spec.txt").write_text(printed)
    path.write_text(RECIPE + "spec: spec.txt\n")
    run(monkeypatch, "spec", path)
    assert capsys.readouterr().out == printed


def test_a_recipe_with_separate_leaves_writes_a_checkpoint_for_every_model(
    project, monkeypatch, capsys
):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "separate: [out]\n")
    run(monkeypatch, "merge", path)
    printed = capsys.readouterr().out
    assert "- separate: out\n" in printed
    assert f"Wrote {project / 'merged'}" in printed
    first = jmudsc.load(project / "first")
    for name in ("model-0", "model-1"):
        merged = jmudsc.load(project / "merged" / name)
        for leaf in ("in", "out"):
            np.testing.assert_allclose(merged[leaf], first[leaf], rtol=1e-6)
    expected = f"jmudsc: {project / 'merged' / 'model-0'}: expected a free path, got"
    assert fails(monkeypatch, "merge", path).startswith(expected)
    run(monkeypatch, "merge", path, "--overwrite")


def test_separate_networks_are_not_written_into_an_earlier_merge(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(RECIPE)
    run(monkeypatch, "merge", path)
    path.write_text(RECIPE + "separate: [out]\n")
    assert fails(monkeypatch, "merge", path, "--overwrite") == (
        f"jmudsc: {project / 'merged'}: expected a folder for one checkpoint per "
        "model, as separate asks, got a checkpoint. Remove it or choose another output."
    )


def test_a_recipe_may_have_the_balance_chosen(project, monkeypatch, capsys):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "alpha: search\nscore: cli_model:score\n")
    run(monkeypatch, "merge", path)
    assert "- alpha: 0.5\n" in capsys.readouterr().out
    recipe = jmudsc.load_provenance(project / "merged")["recipe"]
    assert recipe["balance"] == "search"
    assert len(recipe["scores"]) == 11
    path.write_text(RECIPE + "alpha: search\n")
    message = fails(monkeypatch, "merge", path, "--overwrite")
    assert message.startswith('jmudsc: merge: alpha: expected a score with "search"')


@pytest.mark.parametrize("command", ["spec", "merge"])
def test_a_spec_that_is_not_there_is_one_message(project, monkeypatch, command):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "spec: spec.txt\n")
    assert fails(monkeypatch, command, path) == (
        f"jmudsc: {project / 'spec.txt'}: expected a spec, got no such file. Write one "
        "with jmudsc spec RECIPE."
    )


def test_a_spec_that_does_not_fit_is_one_message(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(RECIPE + "spec: spec.txt\n")
    (project / "spec.txt").write_text("leaf  axes\nin  5, P_0\nout  2*P_0, 3\n")
    assert fails(monkeypatch, "merge", path) == (
        "jmudsc: read_spec: expected axes as long as what the rows put on them, got:\n"
        "  out:0 has length 8, but 2*P_0 has 16; P_0 has 8 by in:1\n"
        "Correct these rows, or those that they disagree with."
    )


def test_a_recipe_with_a_typo_is_one_message_and_no_traceback(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(RECIPE.replace("method", "metod"))
    assert fails(monkeypatch, "merge", path) == (
        f"jmudsc: {path}: correct 1 mistake:\n"
        '  metod: there is no such key; did you mean "method"?'
    )


def test_a_checkpoint_that_is_not_there_is_one_message(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(RECIPE.replace("second", "third"))
    message = fails(monkeypatch, "merge", path)
    assert message.startswith(f"jmudsc: {project / 'third'}: ")
    assert "\n" not in message


def test_all_import_paths_to_nothing_are_said_at_once(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(RECIPE.replace("cli_model:", "cli_model:no_"))
    assert fails(monkeypatch, "merge", path) == (
        "jmudsc: recipe: correct 2 import paths:\n"
        '  apply_fn: expected "no_apply_fn" in cli_model, as "cli_model:no_apply_fn" '
        'says, got a module without it; did you mean "apply_fn"? Correct the name.\n'
        '  batches: expected "no_batches" in cli_model, as "cli_model:no_batches" '
        'says, got a module without it; did you mean "batches"? Correct the name.'
    )


def test_no_batches_is_one_message(project, monkeypatch):
    path = project / "recipe.yaml"
    path.write_text(RECIPE.replace("count: 3", "count: 0"))
    assert fails(monkeypatch, "spec", path) == (
        f"jmudsc: {path}: expected at least one batch, got none. Correct what "
        "cli_model:batches returns."
    )


@pytest.mark.parametrize("memory", ["inf", "nan", "-1.0"])
def test_memory_that_is_no_number_of_bytes_is_one_message(memory, project, monkeypatch):
    expected = (
        f"jmudsc: --memory: expected a number of GiB, 0 or more, got {memory}. Leave "
        "it out for half of the machine's memory."
    )
    with pytest.raises(SystemExit, match=f"^{re.escape(expected)}$"):
        run(monkeypatch, "merge", project / "recipe.yaml", f"--memory={memory}")


def test_a_demo_needs_a_new_directory(tmp_path, monkeypatch):
    assert fails(monkeypatch, "demo", "--out", tmp_path) == (
        f"jmudsc: {tmp_path}: expected a new directory, got one that exists. Remove it "
        "or choose another with --out."
    )


def test_a_demo_of_an_unknown_network_is_refused(tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert fails(monkeypatch, "demo", "--out", out, "--networks", "mpl") == (
        'jmudsc: demo: expected networks of mlp, resnet20, got mpl; did you mean "mlp"?'
    )
    assert not out.exists()


# What takes long to import, and what help can do without.
SLOW = "etils flax jax jaxlib numpy optax orbax rich scipy tensorflow_datasets yaml"


@pytest.mark.parametrize("arguments", ["--help", "merge --help", "--version"])
def test_help_waits_for_nothing_slow(arguments):
    program = (
        f"import sys; sys.argv = ['jmudsc', *{arguments.split()}]\n"
        "from jmudsc import cli\n"
        "try: cli.main()\n"
        f"finally: print(sorted(sys.modules.keys() & set({SLOW.split()})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_command_and_the_version(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--help")
    said = capsys.readouterr().out
    for command in [*cli.COMMANDS, "--version"]:
        assert re.search(rf"(\W|^){command}\b", said)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_all_its_arguments(command, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, command, "--help")
    said = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    sentence = inspect.getdoc(cli.COMMANDS[command]).split("\n\n")[0]
    assert " ".join(sentence.split()) in said
    for name in inspect.signature(cli.COMMANDS[command]).parameters:
        assert re.search(rf"{name.replace('_', '-')}\b", said, re.I)


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    run(monkeypatch, "--version")
    assert capsys.readouterr().out == f"jmudsc {jmudsc.__version__}\n"


@pytest.mark.slow
def test_the_demo_writes_what_the_merge_command_merges_again(
    tmp_path, monkeypatch, capsys
):
    out = tmp_path / "demo"
    run(monkeypatch, "demo", "--out", out, "--networks", "mlp")
    printed = capsys.readouterr().out
    assert (out / "report.md").read_text() in printed
    rows = [line for line in printed.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + 3 + len(jmudsc.METHODS)
    scores = {row.split("|")[1].strip(): float(row.split("|")[2]) for row in rows[1:]}
    assert scores["mudsc-zip"] > scores["average"] + 0.1
    folder = out / "mlp" / "seed-0"
    run(monkeypatch, "merge", folder / "recipe.yaml")
    again = jmudsc.load(folder / "merged")
    once = jmudsc.load(folder / "mudsc-zip")
    assert jax.tree.map(jnp.shape, again) == jax.tree.map(jnp.shape, once)


def test_a_model_is_never_its_own_output(project, monkeypatch):
    run(monkeypatch, "merge", project / "recipe.yaml")
    path = project / "again.yaml"
    path.write_text(RECIPE.replace("[first, second]", "[merged, second]"))
    expected = (
        f"jmudsc: {project}/merged: expected two places for the output and for a "
        "model, got this one for both. Choose another output."
    )
    assert fails(monkeypatch, "merge", path, "--overwrite") == expected


def test_a_spec_written_by_hand_is_checked_on_models_on_disk_too(project, monkeypatch):
    path = project / "recipe.yaml"
    (project / "wrong.txt").write_text("leaf  axes\nin    5, P\nout   8, 3\n")
    path.write_text(RECIPE.replace("mudsc", "weight") + "spec: wrong.txt\n")
    said = fails(monkeypatch, "merge", path, "--memory", "0")
    assert (
        "check_spec: expected outputs that stay as they are when P is permuted, got"
        in said
    )


def test_an_interrupted_command_says_how_to_go_on(project, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("jmudsc.recipes.merge.merge_with", interrupt)
    said = fails(monkeypatch, "merge", project / "recipe.yaml")
    assert said == (
        "jmudsc: interrupted. Start merge or experiment again to go on from here."
    )


COMPARED = f"{RECIPE}held_out: 0.4\nrefit: least-squares\nscore: cli_model:score\n"


def test_init_writes_a_recipe(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    run(monkeypatch, "init", "first", "second", "-o", "new/mine.yaml")
    said = capsys.readouterr().out
    assert "first: orbax, 2 leaves of 64 entries (float32)" in said
    assert "Next: jmudsc plan new/mine.yaml" in said
    assert "  - path: ../first\n" in (project / "new" / "mine.yaml").read_text()


def test_compare_prints_one_table_and_saves_nothing(project, monkeypatch, capsys):
    recipe = project / "recipe.yaml"
    recipe.write_text(COMPARED.replace("count: 3", "count: 6"))
    run(monkeypatch, "compare", recipe, "--methods", "average", "mudsc-align+refit")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("On 64 held-out samples the best of 2 merges and all ")
    rows = [x.split("|")[1].strip() for x in lines if x.startswith("| ")]
    expected = ["network", "parent 0", "parent 1", "average", "ensemble"]
    assert rows == [*expected, "mudsc-align + refit"]
    assert "score" in lines[2]
    assert not (project / "merged").exists()


def test_compare_saves_the_best_where_it_is_told_to(project, monkeypatch, capsys):
    recipe, best = project / "recipe.yaml", project / "best"
    recipe.write_text(RECIPE.replace("count: 3", "count: 6"))
    methods = "--methods", "average", "mudsc-align"
    run(monkeypatch, "compare", recipe, *methods, "--out", best)
    printed = capsys.readouterr().out
    assert "## What was tried" in printed
    assert f"Wrote {best}" in printed
    content = jmudsc.load_provenance(best)
    assert content["recipe"]["tried"].keys() >= {"parent 1", "average", "mudsc-align"}
    assert content["recipe"]["chosen"] in ("parent 0", "parent 1", "mudsc-align")
    np.testing.assert_allclose(
        np.linalg.norm(jmudsc.load(best)["in"]),
        np.linalg.norm(jmudsc.load(project / "first")["in"]),
        rtol=1e-5,
    )


def test_compare_says_what_it_cannot_compare(project, monkeypatch):
    recipe = project / "recipe.yaml"
    text = fails(monkeypatch, "compare", recipe, "--methods", "mudsc-zap")
    assert text == (
        'jmudsc: --methods: expected methods, each once, with repairs as in "mudsc-zip '
        '+ refit". There is no method "mudsc-zap"; did you mean "mudsc-zip"?'
    )
    recipe.write_text("base: first\nmodels: [second]\nmethod: ties\noutput: out\n")
    assert fails(monkeypatch, "compare", recipe) == (
        f"jmudsc: {recipe}: expected networks that are matched, got fine-tunes, by "
        'method "ties". Merge them by each method and use jmudsc evaluate.'
    )
