"""What checkpoints are compared by."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import jax
import numpy as np


def assert_same(found, expected):
    """Same structure, and every leaf the same dtype, shape and bytes."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, two = np.asarray(one), np.asarray(two)
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert one.tobytes() == two.tobytes()


def sentence(text):
    """A pattern for the whole text of an error."""
    return f"^{re.escape(text)}$"


def names_in(folder):
    return sorted(x.name for x in folder.iterdir())


def largest_file(path):
    return max((x for x in path.rglob("*") if x.is_file()), key=os.path.getsize)


def script(name):
    """Import a file of `scripts`, which does the same more often."""
    path = Path(__file__).parents[2] / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
