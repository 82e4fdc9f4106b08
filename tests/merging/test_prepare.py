import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import freeze, infer_spec
from jmudsc.merging.inputs import Inputs
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.prepare import prepare
from jmudsc.merging.watch import Watch

NET = tiny.MLP
MODELS = [tiny.variables(NET, seed) for seed in range(2)]
BATCH = tiny.batch(NET, 0)
OPTIONS = [
    MergeOptions(),
    MergeOptions(frozen=("a/*",)),
    MergeOptions(separate=("c/*",)),
    MergeOptions(frozen=("a/*",), separate=("c/*",)),
]


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


@pytest.mark.parametrize("options", OPTIONS)
def test_shapes_are_prepared_as_arrays_are(options):
    whole = prepare("merge", Inputs(NET.apply_fn, MODELS), BATCH, options)
    inputs = Inputs(NET.apply_fn, abstract(MODELS))
    shapes = prepare("plan", inputs, abstract(BATCH), options)
    assert shapes.apart.specs == whole.apart.specs
    assert shapes.spec == whole.spec
    assert shapes.trunks == abstract(whole.trunks)
    assert shapes.apart.heads == abstract(whole.apart.heads)


def test_without_options_all_of_the_models_is_merged():
    found = prepare("merge", Inputs(NET.apply_fn, MODELS), BATCH, MergeOptions())
    assert found.spec == infer_spec(NET.apply_fn, MODELS[0], BATCH)
    assert found.trunks == MODELS
    assert found.trunk_fn is NET.apply_fn
    assert len(found.networks) == 1
    assert not any(found.apart.heads)


def test_what_is_frozen_stays_and_what_is_separate_is_no_part_of_the_trunk():
    options = MergeOptions(frozen=("a/*",), separate=("c/*",))
    found = prepare("merge", Inputs(NET.apply_fn, MODELS), BATCH, options)
    frozen = freeze(infer_spec(NET.apply_fn, MODELS[0], BATCH), ["a/*"])
    assert found.apart.specs[0] == frozen
    assert set(found.spec.axes) == set(MODELS[0]) - {"c/kernel", "c/bias"}
    assert [set(head) for head in found.apart.heads] == [{"c/kernel", "c/bias"}] * 2
    assert len(found.networks) == 2
    read = found.trunk_fn(jax.tree.map(jnp.asarray, found.trunks[0]), BATCH)
    hidden = np.maximum(BATCH @ MODELS[0]["a/kernel"] + MODELS[0]["a/bias"], 0)
    hidden = hidden @ MODELS[0]["b/kernel"] + MODELS[0]["b/bias"]
    np.testing.assert_allclose(read[0], np.maximum(hidden, 0).sum(), rtol=1e-5)


def test_a_spec_that_is_given_is_used_and_none_is_derived():
    spec = freeze(tiny.spec_of("mlp"), ["a/*"])
    told = []
    watch = Watch(lambda *said: told.append(said))
    inputs = Inputs(NET.apply_fn, MODELS, spec=spec)
    assert prepare("merge", inputs, None, MergeOptions(), watch).spec == spec
    assert not told
    assert not watch.seconds
    inputs = Inputs(NET.apply_fn, MODELS)
    prepare("merge", inputs, BATCH, MergeOptions(), watch)
    assert told == [("deriving the spec", 0, 1)]
    assert list(watch.seconds) == ["deriving"]


WRONG = [
    (
        Inputs([NET.apply_fn] * 2, MODELS),
        MergeOptions(),
        "merge: apply_fn: expected one function, as all leaves are merged, got "
        "several. Pass separate= with the leaves of the heads.",
    ),
    (
        Inputs([NET.apply_fn], MODELS),
        MergeOptions(separate=("c/*",)),
        "merge: apply_fn: expected one function for all 2 models or one for each, got "
        "1. Pass as many as models.",
    ),
]


@pytest.mark.parametrize(("inputs", "options", "message"), WRONG)
def test_functions_are_one_or_one_for_each_model(inputs, options, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        prepare("merge", inputs, BATCH, options)
