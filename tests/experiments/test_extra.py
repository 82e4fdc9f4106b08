import subprocess
import sys

import pytest
from commands import fails

from jmudsc.experiments.extra import check_extra


def test_with_the_extra_all_is_well():
    check_extra("demo")


@pytest.mark.parametrize(
    ("arguments", "where"),
    [(["demo"], "demo"), (["experiment", "configs/digits-mlp.yaml"], "experiment")],
)
def test_without_the_extra_a_command_says_how_to_install_it(
    arguments, where, monkeypatch
):
    monkeypatch.setitem(sys.modules, "optax", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert fails(monkeypatch, *arguments) == (
        f"jmudsc: {where}: expected the extra `experiments` to be installed, got no "
        "optax, scikit-learn. Run pip install 'jmudsc[experiments]'."
    )


def test_a_packed_file_needs_no_package_of_datasets(monkeypatch, tmp_path):
    hidden = ("sklearn", "PIL", "tensorflow_datasets", "importlib_resources")
    for name in hidden:
        monkeypatch.setitem(sys.modules, name, None)
    check_extra("experiment", packed=True)
    file = tmp_path / "images.npz"
    arguments = ["experiment", "configs/mnist-mlp.yaml", "--data-dir", str(file)]
    assert fails(monkeypatch, *arguments, "--out", str(tmp_path / "out")) == (
        f"jmudsc: {file}: expected a file of packed datasets, got no such file. Write "
        "it with scripts/pack_datasets.py, or check the path."
    )
    monkeypatch.setitem(sys.modules, "optax", None)
    with pytest.raises(ValueError, match="got no optax"):
        check_extra("experiment", packed=True)


def test_merging_needs_nothing_of_the_extra(tmp_path):
    """Hide the extra from a process that merges by a recipe, reads and writes files."""
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    run = subprocess.run(
        [sys.executable, "-c", MERGE], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "- method: weight-align" in run.stdout
    assert (tmp_path / "merged.msgpack").is_file()


NET = """
import jax
import numpy as np

def apply_fn(variables, x):
    return jax.nn.relu(x @ variables["in"]) @ variables["out"]

def batches():
    return [np.ones((2, 4), np.float32)]
"""
RECIPE = """
models: [first.npz, second.npz]
apply_fn: net:apply_fn
batches: {factory: net:batches}
method: weight-align
output: merged.msgpack
"""
MERGE = """
import sys
for name in ("flax", "optax", "sklearn", "PIL", "tensorflow_datasets", "matplotlib"):
    sys.modules[name] = None
import numpy as np
rng = np.random.default_rng(0)
for name in ("first", "second"):
    weights = {"in": rng.normal(size=(4, 8)), "out": rng.normal(size=(8, 3))}
    np.savez(f"{name}.npz", **{k: x.astype(np.float32) for k, x in weights.items()})
sys.argv = ["jmudsc", "merge", "recipe.yaml"]
from jmudsc.cli import main
main()
"""
