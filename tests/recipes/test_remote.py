"""Recipes, soups and evaluations whose paths are URLs."""

import fsspec
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from commands import fails, run
from s3 import bucket as bucket, names

import jmudsc
from jmudsc.checkpoints.save import save_variables

MODEL = """
import jax
import numpy as np


def apply_fn(variables, x):
    return jax.nn.relu(x @ variables["in"]) @ variables["out"]


def batches():
    return [np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)]


def loss(variables):
    return float(variables["out"].sum())
"""


def variables_of(seed):
    draw = np.random.default_rng(seed)
    shapes = {"in": (5, 8), "out": (8, 3)}
    return {n: draw.standard_normal(x).astype(np.float32) for n, x in shapes.items()}


@pytest.fixture
def recipe(bucket, tmp_path, monkeypatch):
    """Put two models and a recipe at URLs, and the code into the current directory."""
    for number in range(2):
        save_variables(f"{bucket}/models/{number}", variables_of(number))
    (tmp_path / "remote_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    content = {
        "models": ["models/0", "models/1"],
        "apply_fn": "remote_model:apply_fn",
        "batches": {"factory": "remote_model:batches"},
        "method": "mudsc-align",
        "losses": {"a": "remote_model:loss"},
        "output": "merged",
    }
    url = f"{bucket}/recipe.yaml"
    fsspec.filesystem("s3").pipe_file(url, yaml.safe_dump(content).encode())
    return url


def test_a_recipe_at_a_url_is_planned_merged_and_evaluated(
    recipe, bucket, monkeypatch, capsys
):
    run(monkeypatch, "plan", recipe)
    run(monkeypatch, "merge", recipe)
    assert f"Wrote {bucket}/merged" in capsys.readouterr().out
    assert "jmudsc/report.md" in names(f"{bucket}/merged")
    apply_fn, x = lambda v, x: jnp.maximum(x @ v["in"], 0) @ v["out"], jnp.ones((4, 5))
    expected = jmudsc.merge(
        apply_fn,
        [variables_of(n) for n in range(2)],
        [np.random.default_rng(0).standard_normal((20, 5)).astype(np.float32)],
        method="mudsc-align",
        key=jax.random.key(0),
    )
    found = jmudsc.load(f"{bucket}/merged")
    np.testing.assert_allclose(
        apply_fn(found, x), apply_fn(expected.variables, x), rtol=1e-5, atol=1e-6
    )
    run(monkeypatch, "evaluate", recipe)
    assert "| parent B |" in capsys.readouterr().out
    assert "expected a free path, got one that exists" in fails(
        monkeypatch, "merge", recipe
    )
    run(monkeypatch, "merge", recipe, "--overwrite")
    assert fails(monkeypatch, "landscape", recipe) == (
        f"jmudsc: landscape: expected a local directory to write to, got "
        f"{bucket}/merged-landscape, beside the recipe's output. Pass one with --out."
    )


def test_the_steps_of_a_run_at_a_url_are_averaged(bucket, monkeypatch):
    for step in range(3):
        save_variables(
            f"{bucket}/run/{step}", {"params": {"w": jnp.full(2, float(step))}}
        )
    run(monkeypatch, "soup", f"{bucket}/run", "--out", f"{bucket}/soup.npz", "--last=2")
    found = jmudsc.load(f"{bucket}/soup.npz")["params"]["w"]
    np.testing.assert_array_equal(found, np.full(2, 1.5))


def test_fine_tunes_from_urls_leave_nothing_beside_their_output(
    bucket, tmp_path, monkeypatch
):
    for number in range(2):
        save_variables(f"{bucket}/tuned/{number}", variables_of(number))
    monkeypatch.chdir(tmp_path)
    content = {"base": f"{bucket}/tuned/0", "models": [f"{bucket}/tuned/1"]}
    content |= {"lambda_": 0.5, "check": False, "output": "out/tuned.safetensors"}
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(content))
    run(monkeypatch, "merge", "tuned.yaml")
    found = jmudsc.load(tmp_path / "out" / "tuned.safetensors")
    for name, leaf in variables_of(0).items():
        mean = (leaf + variables_of(1)[name]) / 2
        np.testing.assert_allclose(found[name], mean, rtol=1e-5, atol=1e-6)
    there = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert there == ["tuned.safetensors", "tuned.safetensors.jmudsc"]
