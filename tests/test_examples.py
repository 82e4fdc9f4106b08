"""Every example runs, trained for a few steps, and prints its table."""

import json
import re
import runpy
import sys
import warnings
from pathlib import Path

import jax
import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "digits")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_prints_numbers(name, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.setattr(sys, "argv", [name, "--steps", "3"])
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "__array__ implementation")  # Keras
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    numbers = [float(x) for x in re.findall(r"\b[01]\.\d{3}\b", printed)]
    assert (numbers and max(numbers) <= 1) or name == "sharded_decoder"
    assert printed.strip()


NOTEBOOK = json.loads((FOLDER / "quick_start.ipynb").read_text())


def test_the_notebook_is_short_and_has_no_outputs():
    cells = NOTEBOOK["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code)
    assert all(cell["execution_count"] is None for cell in code)
    assert "".join(code[0]["source"]).startswith("%pip install -q jmudsc")


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    with jax.numpy_rank_promotion("allow"):
        for cell in cells:
            text = "".join(cell["source"]).replace("STEPS = 400", "STEPS = 3")
            if not text.startswith("%"):
                exec(text, scope)
    assert scope["STEPS"] == 3
    printed = capsys.readouterr().out
    assert printed.startswith("On ")
    assert re.search(r"^merged +0\.\d{3}$", printed, re.M)
    assert "| network " in printed
    assert (tmp_path / "merged" / "README.md").is_file()
