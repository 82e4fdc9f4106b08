import re

import jax
import numpy as np
import pytest
import tiny

from jmudsc import load, merge
from jmudsc.checkpoints.save import save_variables
from jmudsc.lazy import is_lazy
from jmudsc.merging.inputs import check_batches, check_inputs, Inputs, loaded
from jmudsc.merging.merge import merge_with
from jmudsc.merging.options import MergeOptions

NET = tiny.MLP
MODELS = [tiny.variables(NET, seed) for seed in range(2)]
BATCHES = [tiny.batch(NET, seed) for seed in range(2)]
WEIGHTS = MergeOptions(method="weight-align")


def refused(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


def test_options_in_a_record_merge_as_keywords_do(key):
    inputs = Inputs(NET.apply_fn, MODELS, BATCHES)
    options = MergeOptions(separate=("c/*",), refit="least-squares", ridge=0.1)
    found = merge_with(options, inputs, key=key)
    given = {"separate": "c/*", "refit": "least-squares", "ridge": 0.1, "key": key}
    expected = merge(NET.apply_fn, MODELS, BATCHES, **given)
    assert found.recipe == expected.recipe
    assert found.changes == expected.changes
    jax.tree.map(np.testing.assert_array_equal, found.networks, expected.networks)


def test_the_caller_is_named_where_batches_are_wrong():
    message = (
        "recipe: batches: expected an iterable that can be read several times, got a "
        "generator, which can be read only once. Pass a list, or an object whose "
        "__iter__ starts anew."
    )
    with refused(ValueError, message):
        check_batches("recipe", (x for x in BATCHES), MergeOptions())
    check_batches("recipe", BATCHES, MergeOptions())


@pytest.mark.parametrize(
    ("options", "has_spec", "message"),
    [
        (
            MergeOptions(),
            True,
            "merge: batches: expected some for mudsc-zip, got None. Pass calibration "
            "batches, or use weight-align or weight-zip.",
        ),
        (
            WEIGHTS,
            False,
            "merge: spec: expected one, since without batches it cannot be derived, "
            "got None. Pass spec=infer_spec(apply_fn, variables, batch), where batch "
            "may be jax.ShapeDtypeStructs.",
        ),
        (
            MergeOptions(method="average", refit="least-squares", repair="rescale"),
            True,
            'merge: batches: expected some for refit="least-squares" and '
            'repair="rescale", got None. Pass calibration batches.',
        ),
    ],
)
def test_no_batches_are_refused_where_some_are_needed(options, has_spec, message):
    with refused(ValueError, message):
        check_batches("merge", None, options, has_spec=has_spec)


def test_owners_are_models():
    options = MergeOptions(refit="least-squares", owners=(0, 2))
    message = (
        "merge: owners: expected for each batch the number of the model whose task it "
        "is from, each of 0 to 1 at least once, got 2, no batch of model 1. Count the "
        "batches of each task."
    )
    with refused(ValueError, message):
        check_inputs("merge", Inputs(NET.apply_fn, MODELS, BATCHES), options)


def test_models_on_disk_are_read_where_all_are_needed_at_once(tmp_path):

    places = [save_variables(tmp_path / f"{n}.npz", m) for n, m in enumerate(MODELS)]
    lazy = [load(place, lazy=True) for place in places]
    inputs = Inputs(NET.apply_fn, lazy, BATCHES)
    kept, first = loaded("merge", inputs, MergeOptions())
    assert is_lazy(kept.models)
    np.testing.assert_array_equal(first, BATCHES[0])
    for options in (
        MergeOptions(separate=("c/*",)),
        MergeOptions(repair="rescale"),
        MergeOptions(refit="least-squares"),
        MergeOptions(alpha="auto"),
    ):
        read, _ = loaded("merge", inputs, options)
        assert not is_lazy(read.models)


def test_without_batches_there_is_no_first():
    inputs = Inputs(NET.apply_fn, MODELS, None, tiny.spec_of("mlp"))
    assert loaded("merge", inputs, WEIGHTS) == (inputs, None)
