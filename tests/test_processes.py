"""Two processes merge a recipe together: one checkpoint, as one process writes it."""

import time

import jax
import merging_processes as two
import numpy as np
import pytest
from commands import fails, run

import jmudsc


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    two.make_project(folder)
    return folder


def by_one(project, name, monkeypatch):
    """Merge by one process, and return what it wrote and how."""
    recipe, alone = project / f"{name}.yaml", project / f"{name}-alone.yaml"
    output = f"{name}.npz" if name == "file" else name
    text = recipe.read_text().replace(f"output: {output}", f"output: alone-{output}")
    alone.write_text(text)
    run(monkeypatch, "merge", alone, "--overwrite")
    return project / f"alone-{output}"


@pytest.mark.parametrize("name", ["zip", "file"])
def test_two_processes_write_the_checkpoint_that_one_writes(name, project, monkeypatch):
    (code, printed, errors), other = two.ended(two.started(project / f"{name}.yaml"))
    assert code == 0, errors
    assert other[0] == 0, other[2]
    found = project / (f"{name}.npz" if name == "file" else name)
    assert f"Wrote {found}" in printed
    assert "| label |" in printed
    assert "label" not in other[1]
    expected = by_one(project, name, monkeypatch)
    alone, together = map(jmudsc.load_provenance, (expected, found))
    for label, rows in alone["assignment"].items():
        np.testing.assert_array_equal(together["assignment"][label], rows)
    assert together["digests"].keys() == alone["digests"].keys()
    assert jax.tree.all(
        jax.tree.map(
            lambda x, y: np.allclose(x, y, rtol=1e-5, atol=1e-5),
            *map(jmudsc.load, (expected, found)),
        )
    )
    assert not list(project.glob(".*jmudsc*"))


@pytest.mark.parametrize("name", ["tuned", "tuned.safetensors"])
def test_two_processes_merge_fine_tunes_to_the_bits_of_one(name, project, monkeypatch):
    recipe = project / f"{name}.yaml"
    (code, printed, errors), other = two.ended(two.started(recipe, "--memory", "1"))
    assert code == 0, errors
    assert other[0] == 0, other[2]
    assert f"Wrote {project / name}" in printed
    run(monkeypatch, "merge", recipe, "--output", project / f"alone-{name}")
    found, expected = (
        jmudsc.load_provenance(project / x) for x in (name, f"alone-{name}")
    )
    assert found["digests"] == expected["digests"]
    same = lambda x, y: np.testing.assert_array_equal(x, y)
    jax.tree.map(same, *(jmudsc.load(project / x) for x in (name, f"alone-{name}")))
    assert not list(project.glob(".*jmudsc*"))


@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_is_killed_leaves_nothing_half_written(dying, project):
    recipe = project / f"dying-{dying}.yaml"
    text = (project / "zip.yaml").read_text().replace(two.REPAIRED, "")
    recipe.write_text(text.replace("output: zip", f"output: dead-{dying}"))
    both = two.started(recipe, dying=dying)
    both[dying].communicate(timeout=300)
    assert both[dying].returncode == -9
    time.sleep(1)  # the other goes on for what it can
    both[1 - dying].kill()
    both[1 - dying].communicate()
    assert not (project / f"dead-{dying}").exists()


def test_a_merge_that_is_there_is_refused_by_both(project):
    (project / "there").mkdir()
    (project / "there" / "mine.txt").write_text("mine")
    recipe = project / "there.yaml"
    text = (project / "zip.yaml").read_text()
    recipe.write_text(text.replace("output: zip", "output: there"))
    for code, _, errors in two.ended(two.started(recipe)):
        assert code == 1
        assert f"{project}/there: expected a free path, got one that exists." in errors
    assert (project / "there" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        ["--coordinator=localhost:1"],
        ["--processes=2"],
        ["--process=0"],
        ["--coordinator=localhost:1", "--process=0"],
    ],
)
def test_options_of_several_processes_go_together(options, project, monkeypatch):
    assert fails(monkeypatch, "merge", project / "zip.yaml", *options) == (
        "jmudsc: processes: expected --coordinator, --processes and --process "
        "together, got only some of them. Give all three, or --distributed alone where "
        "JAX finds them out by itself."
    )


def test_a_process_has_a_number_of_its_own(project, monkeypatch):
    options = "--coordinator=localhost:1", "--processes=2", "--process=2"
    assert fails(monkeypatch, "merge", project / "zip.yaml", *options) == (
        "jmudsc: --process: expected a number from 0 to 1, one for each of 2 "
        "processes, got 2. Give every process its own."
    )


def test_processes_that_jax_does_not_find_are_one_message(project, monkeypatch):
    monkeypatch.setattr(
        jax.distributed, "initialize", refusing("coordinator_address should be defined")
    )
    assert fails(monkeypatch, "merge", project / "zip.yaml", "--distributed") == (
        "jmudsc: processes: expected several that find each other, got an error "
        "(coordinator_address should be defined). Start every process with the same "
        "--coordinator HOST:PORT and --processes N, and its own --process I."
    )


def refusing(message):
    def initialize(*arguments):
        raise ValueError(message)

    return initialize


def test_what_several_processes_cannot_do_is_refused(project, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    path, text = project / "refused.yaml", (project / "file.yaml").read_text()
    path.write_text(f"{text}separate: [params/out]\n")
    assert fails(monkeypatch, "merge", path) == (
        f"jmudsc: {path}: expected no separate leaves, since 2 processes write one "
        "network together, got some. Merge in one process."
    )
    assert fails(monkeypatch, "merge", project / "zip.yaml", "--memory=1") == (
        "jmudsc: --memory: expected none with 2 processes, which hold all models "
        "spread over their devices, got one. Leave it out."
    )
    path.write_text(text.replace("file.npz", "s3://bucket/merged"))
    assert fails(monkeypatch, "merge", path) == (
        f"jmudsc: {path}: output: expected a folder that all 2 processes see, got the "
        "URL s3://bucket/merged. Write to a shared disk and copy the result."
    )
    path.write_text(
        "models: [m1]\nbase: m0\nrepair: pooled\napply_fn: processes_model:apply_fn\n"
        "batches: {factory: processes_model:batches, count: 1}\noutput: finetuned\n"
    )
    assert fails(monkeypatch, "merge", path) == (
        "jmudsc: recipe: expected a merge that goes leaf by leaf, since 2 processes do "
        "it, each its share, got one that needs whole models: data, a search or a "
        "repair. Merge in one process."
    )
