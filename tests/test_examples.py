"""Every example runs, trained for a few steps, and prints its table."""

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
