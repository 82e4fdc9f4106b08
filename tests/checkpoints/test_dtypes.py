"""What arrays on disk and on devices cannot both hold."""

import checkpoint_writers as writers
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_checks import assert_same, sentence

from jmudsc.checkpoints.load import load
from jmudsc.merging.save_result import save


def test_narrowing_64_bits_keeps_values(tmp_path):
    tree = {"count": np.arange(3), "half": np.array([0.5, np.nan]), "rate": 0.1}
    found = load(writers.standard(tmp_path / "run", tree))
    expected = {
        "count": np.arange(3, dtype=np.int32),
        "half": np.array([0.5, np.nan], np.float32),
        "rate": np.float32(0.1),
    }
    assert_same(found, expected)


def test_text_among_the_arrays(tmp_path):
    path = writers.pytree(tmp_path / "run", {"name": "vit", "params": jnp.ones(1)})
    expected = (
        f"{path}: expected numbers, got 'vit' in leaf \"name\". Name the subtree to "
        'load, for instance subtree="params".'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    assert load(path, "params") == 1


def test_a_leaf_that_32_bits_cannot_hold(tmp_path):
    path = writers.standard(tmp_path / "run", {"w": np.array([0.1])})
    expected = (
        f'{path}: expected a leaf that float32 can hold, got float64 in "w" that would '
        'lose digits. Call jax.config.update("jax_enable_x64", True) first.'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


def test_no_arrays_at_all(tmp_path):
    expected = (
        "variables: expected at least one array, got none. Pass a finished merge."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / "merged", writers.result_of({"params": {}}))
