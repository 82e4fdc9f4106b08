"""A merge on its way to disk: what its record can hold."""

import inspect
import re

import checkpoint_writers as writers
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc.merging.save_result import save


def sentence(text):
    return f"^{re.escape(text)}$"


def test_a_recipe_that_is_not_json(tmp_path):
    result = writers.result_of({"w": jnp.ones(2)}, recipe={"alpha": np.float32(0.5)})
    expected = (
        "recipe: expected plain numbers, text, lists and mappings, got something else "
        'in "alpha" (Object of type float32 is not JSON serializable). Convert it '
        "first."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", result)
    assert not list(tmp_path.iterdir())


def test_an_assignment_of_another_type(tmp_path):
    result = writers.result_of({"w": jnp.ones(2)}, {"P_1": np.ones((2, 2))})
    expected = (
        "assignment: expected int32, got another type for 1 of 2 labels. Convert them "
        "with .astype(np.int32):\n  P_1: float64"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", result)


def test_saving_something_else_than_a_merge(tmp_path):
    expected = "save: expected a MergeResult, got a dict. Pass what merge returned."
    with pytest.raises(TypeError, match=sentence(expected)):
        inspect.unwrap(save)(tmp_path / "merged", {"w": jnp.ones(2)})
