"""A merge that was killed goes on where it was, to the same bits."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmudsc
from jmudsc.checkpoints.load import fingerprint
from jmudsc.checkpoints.save import save_variables
from jmudsc.digests import digest_of
from jmudsc.matching.coordinate_step import solve
from jmudsc.matching.journal import Journal
from jmudsc.recipes import resolve
from jmudsc.recipes.merge import _journal, merge_recipe
from jmudsc.recipes.reader import read_recipe

STEPS = "jmudsc.matching.coordinate_step.solve"

MODEL = """
import jax.numpy as jnp

def apply_fn(variables, x):
    for name in sorted(variables)[:-1]:
        x = jnp.maximum(x @ variables[name], 0)
    return x @ variables["out"]

batches = [jnp.ones((3, 12))]
"""

RECIPE = """
models: [first.safetensors, second.safetensors]
apply_fn: journal_model:apply_fn
batches: journal_model:batches
method: {method}
output: {output}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name, seed in (("first", 0), ("second", 1)):
        keys = jax.random.split(jax.random.key(seed), 5)
        model = {f"layer{n}": jax.random.normal(keys[n], (12, 12)) for n in range(4)}
        save_variables(folder / f"{name}.safetensors", {**model, "out": jnp.eye(12)})
    (folder / "journal_model.py").write_text(MODEL)
    return folder


def recipe(project, method, output):
    path = project / f"{output}.yaml"
    path.write_text(RECIPE.format(method=method, output=output))
    return path


def journal_of(project, output):
    return project / f".{output}.jmudsc-journal"


class Stop(Exception):
    """In the place of a kill."""


@pytest.mark.parametrize("method", ["weight-align", "mudsc-zip"])
@pytest.mark.parametrize("memory", [0, 2**30])
def test_a_merge_goes_on_where_it_was_stopped(method, memory, project, monkeypatch):
    name = f"{method}-{memory}"
    whole, _ = merge_recipe(recipe(project, method, f"{name}-whole"), memory=memory)
    taken = []

    def stopping(after):
        def solving(search, family, assignment):
            if len(taken) == after:
                raise Stop
            taken.append(family)
            return solve(search, family, assignment)

        return solving

    path = recipe(project, method, name)
    stops = (3, 7, 8)
    for after in stops:
        monkeypatch.setattr(STEPS, stopping(after))
        with pytest.raises(Stop):
            merge_recipe(path, memory=memory)
        assert len(list(journal_of(project, name).iterdir())) == after
    monkeypatch.setattr(STEPS, stopping(10**6))
    resumed, _ = merge_recipe(path, memory=memory)
    assert not journal_of(project, name).exists()
    one, two = jmudsc.load_provenance(whole), jmudsc.load_provenance(resumed)
    for what in ("digests", "history", "recipe"):
        assert one[what] == two[what]
    for label, row in one["assignment"].items():
        np.testing.assert_array_equal(two["assignment"][label], row)


def test_models_written_anew_are_matched_anew(project, monkeypatch):
    def stop(*_, **__):
        raise Stop

    path = recipe(project, "weight-align", "anew")
    monkeypatch.setattr("jmudsc.recipes.writing.save_with_record", stop)
    with pytest.raises(Stop):
        merge_recipe(path)
    before = set(journal_of(project, "anew").iterdir())
    assert before
    with pytest.raises(Stop):
        merge_recipe(path)
    assert set(journal_of(project, "anew").iterdir()) == before
    first = project / "first.safetensors"
    was = fingerprint(first)
    model = jmudsc.load(first)
    first.unlink()
    save_variables(first, jax.tree.map(lambda x: 2 * x, model))
    assert fingerprint(first) != was
    with pytest.raises(Stop):
        merge_recipe(path)
    assert len(set(journal_of(project, "anew").iterdir())) == 2 * len(before)


def test_another_model_of_the_same_size_and_time_is_another(tmp_path):
    file = tmp_path / "model.npz"
    seen = []
    for value in (0.0, 1.0):
        np.savez(file, w=np.full(3, value))
        os.utime(file, (0, 0))
        seen.append(fingerprint(file))
    assert seen[0] != seen[1]


def test_what_is_beside_an_index_makes_no_difference(tmp_path):
    shard, index = "a-1.safetensors", tmp_path / "a.safetensors.index.json"
    model = {"w": jnp.zeros(3)}
    save_variables(tmp_path / shard, model)
    index.write_text(json.dumps({"weight_map": {"w": shard}}))
    was = fingerprint(index)
    (tmp_path / ".merged.jmudsc-journal").mkdir()
    save_variables(tmp_path / "b-1.safetensors", model)
    assert fingerprint(index) == was
    (tmp_path / shard).unlink()
    save_variables(tmp_path / shard, model)
    assert fingerprint(index) != was


def test_a_model_replaced_while_it_is_read_is_another(project, monkeypatch):
    def load_models(*arguments):
        found = load(*arguments)
        os.utime(project / "first.safetensors")
        return found

    def stop(*_, **__):
        raise Stop

    load = resolve.load_models
    path = recipe(project, "weight-align", "replaced")
    monkeypatch.setattr("jmudsc.recipes.writing.save_with_record", stop)
    steps = []
    for loads in (load_models, load):
        monkeypatch.setattr("jmudsc.recipes.merge.load_models", loads)
        with pytest.raises(Stop):
            merge_recipe(path)
        steps.append(len(list(journal_of(project, "replaced").iterdir())))
    assert steps[1] == 2 * steps[0]


def test_steps_of_another_kind_of_device_are_not_taken(project, monkeypatch):
    asked = read_recipe(recipe(project, "weight-align", "device"))
    here = _journal(asked, project / "device")
    assert here == _journal(asked, project / "device")
    monkeypatch.setattr(jax, "default_backend", lambda: "other")
    assert here != _journal(asked, project / "device")


def test_a_step_is_computed_once(tmp_path):
    journal = Journal(tmp_path / "journal", "models")
    calls = []

    def compute():
        calls.append(1)
        return {"a": np.arange(3, dtype=np.int32), "b": np.array(0.1)}

    first = journal.recall(lambda: [b"state"], compute)
    again = journal.recall(lambda: [b"state"], compute)
    assert len(calls) == 1
    for name, array in first.items():
        assert again[name].dtype == array.dtype
        np.testing.assert_array_equal(again[name], array)
    journal.recall(lambda: [b"other"], compute)
    Journal(journal.folder, "others").recall(lambda: [b"state"], compute)
    journal.of("spec").recall(lambda: [b"state"], compute)
    assert len(calls) == 4


@pytest.mark.parametrize("size", [0, 10, 200])
def test_a_step_that_was_cut_short_is_computed_again(size, tmp_path):
    journal = Journal(tmp_path, "models")
    compute = lambda: {"a": np.arange(100)}
    journal.recall(lambda: [b"state"], compute)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:size])
    found = journal.recall(lambda: [b"state"], compute)
    np.testing.assert_array_equal(found["a"], np.arange(100))


def test_a_step_that_cannot_be_kept_is_computed(tmp_path):
    (tmp_path / "journal").write_text("a file is in the way")
    journal = Journal(tmp_path / "journal", "models")
    found = journal.recall(lambda: [b"state"], lambda: {"a": np.arange(3)})
    np.testing.assert_array_equal(found["a"], np.arange(3))


def test_where_parts_end_is_told():
    assert digest_of([b"a", b"bc"]) != digest_of([b"ab", b"c"])


def test_a_spec_has_the_same_digest_in_every_process():
    code = (
        "import jax, jax.numpy as jnp, jmudsc\n"
        "from jmudsc.matching.coordinate_descent import spec_digest\n"
        "f = lambda v, x: jnp.maximum(x @ v['a'], 0) @ v['b']\n"
        "v = {'a': jnp.ones((3, 4)), 'b': jnp.ones((4, 2))}\n"
        "print(spec_digest(jmudsc.infer_spec(f, v, jnp.ones((2, 3)))))\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "JAX_PLATFORMS": "cpu",
            },
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1
