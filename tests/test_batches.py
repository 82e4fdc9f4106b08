import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jmudsc import (
    collect,
    combine,
    match,
    merge,
    refit,
    repair,
    reset_batch_stats,
)
from jmudsc.batches import check_batch

NET = tiny.MLP
MODELS = [tiny.variables(NET, seed) for seed in range(2)]
SPEC = tiny.spec_of("mlp")
BATCH = tiny.batch(NET, 0)
EMPTY = BATCH[:0]


def refused(kind, message):
    return pytest.raises(kind, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(
    ("batch", "kind"),
    [
        (EMPTY, "float32[0, 5]"),
        ((EMPTY, np.zeros(0, np.int32)), "float32[0, 5], int32[0]"),
        ({}, "no array"),
    ],
)
def test_a_batch_without_samples_is_refused(batch, kind):
    message = (
        f"collect: batch 3: expected at least one sample, got {kind}. Leave out "
        "batches without samples."
    )
    with refused(ValueError, message):
        check_batch("collect", batch, 3)


def test_a_part_of_a_batch_may_have_no_rows():
    check_batch("collect", {"nodes": np.ones((4, 3)), "edges": np.ones((0, 2))})


def deleted():
    array = jnp.ones((4, 5))
    array.delete()
    return array


@pytest.mark.parametrize(
    ("batch", "path"), [(deleted(), "the array"), ({"x": deleted()}, "x")]
)
def test_an_array_that_was_deleted_is_named(batch, path):
    message = (
        "collect: batch 0: expected arrays that are there, got deleted ones, as a "
        f"function that takes donated arguments leaves them:\n  {path}\nPass a copy "
        "made before, or load it again."
    )
    with refused(ValueError, message):
        check_batch("collect", batch)


def assignment():
    return match(SPEC, MODELS, method="average", key=jax.random.key(0)).assignment


def fitted(function, batches):
    merged = combine(SPEC, MODELS, assignment())
    return function(SPEC, NET.apply_fn, MODELS, assignment(), merged, batches)


READERS = {
    "collect": lambda batches: collect(SPEC, NET.apply_fn, MODELS, batches),
    "refit": lambda batches: fitted(refit, batches),
    "repair": lambda batches: fitted(repair, batches),
    "reset_batch_stats": lambda batches: reset_batch_stats(
        lambda v, x: {"mean": 0.9 * v["mean"] + 0.1 * x.mean(0)},
        {"mean": np.ones(5, np.float32)},
        batches,
    ),
    "merge": lambda batches: merge(
        NET.apply_fn,
        MODELS,
        list(reversed(batches)),
        method="average",
        key=jax.random.key(0),
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_whoever_reads_batches_says_which_has_no_samples(name):
    number = 0 if name == "merge" else 1
    message = (
        f"{name}: batch {number}: expected at least one sample, got float32[0, 5]. "
        "Leave out batches without samples."
    )
    with refused(ValueError, message):
        READERS[name]([BATCH, EMPTY])


def test_a_search_for_alpha_needs_outputs_of_samples(key):
    message = (
        'merge: alpha: expected outputs with an axis of samples for "auto", got a '
        "single number. Return the outputs of the network, not a loss, or pass a "
        "number for alpha."
    )
    loss = lambda v, x: NET.apply_fn(v, x).mean()
    with refused(ValueError, message):
        merge(loss, MODELS, [BATCH], key=key, alpha="auto", check=False)
