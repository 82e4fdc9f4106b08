import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmudsc import Fixed, PermutationSpec, Units
from jmudsc.spec.check_variables import (
    check_covers,
    check_finite,
    check_models,
    check_same,
)
from jmudsc.spec.permutation_spec import labels_of

GOOD = {"bias": np.ones(3, np.float32), "kernel": np.ones((2, 3), np.float32)}


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_models_of_one_kind_are_the_same():
    check_same("merge", [GOOD, jax.tree.map(jnp.asarray, GOOD), GOOD])


@pytest.mark.parametrize("count", [0, 1])
def test_one_model_is_not_enough(count):
    with refused(
        f"merge: expected at least 2 models, got {count}. Pass all that are to be "
        "merged."
    ):
        check_same("merge", [GOOD] * count)


def test_every_difference_of_every_model_is_listed():
    second = {"bias": np.ones(4, np.float32), "scale": np.ones(3, np.float32)}
    third = {**GOOD, "kernel": np.ones((2, 3), np.float16)}
    message = """\
merge: expected models with the same leaves, shapes and dtypes, got some that differ:
  model 1 lacks kernel
  model 1 has scale, model 0 has not
  bias is float32[3] in model 0, float32[4] in model 1
  kernel is float32[2, 3] in model 0, float16[2, 3] in model 2
Merge checkpoints of one architecture; rename or cast leaves first."""
    with refused(message):
        check_same("merge", [GOOD, second, third])


def test_the_same_leaves_in_other_containers_are_the_same():
    check_same("merge", [{"0": GOOD["bias"]}, [GOOD["bias"]]])


def test_finite_models_pass_whatever_their_dtypes():
    leaves = {
        "half": jnp.ones(2, jnp.bfloat16),
        "count": np.int32(3),
        "flag": np.ones(2, bool),
        "wave": np.ones(2, np.complex64),
        "key": jax.random.key(0),
        "none": np.ones((0, 3), np.float32),
    }
    check_finite("merge", [leaves, leaves])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_leaf_that_is_not_finite_is_named(bad, dtype):
    kernel = np.ones((2, 3), np.float32)
    kernel[1, 0] = kernel[1, 2] = bad
    message = """\
merge: expected finite parameters, got others:
  model 1: 2 of 6 values of params/kernel are NaN or infinite
Take an earlier checkpoint of that run."""
    with refused(message):
        check_finite(
            "merge",
            [
                {"params": {"kernel": jnp.ones((2, 3), dtype)}},
                {"params": {"kernel": jnp.asarray(kernel, dtype)}},
            ],
        )


def test_every_model_and_leaf_that_is_not_finite_is_listed():
    bad = jax.tree.map(lambda x: x * np.float32(np.nan), GOOD)
    message = """\
merge: expected finite parameters, got others:
  model 0: 3 of 3 values of bias are NaN or infinite
  model 0: 6 of 6 values of kernel are NaN or infinite
  model 2: 3 of 3 values of bias are NaN or infinite
  model 2: 6 of 6 values of kernel are NaN or infinite
Take an earlier checkpoint of that run."""
    with refused(message):
        check_finite("merge", [bad, GOOD, bad])


@pytest.fixture
def spec():
    axes = {"bias": (Units("P_0", 3),), "kernel": (Fixed(2), Units("P_0", 3))}
    return PermutationSpec(axes, labels_of(axes, {"P_0": 3}, {}))


def test_a_spec_covers_the_leaves_it_was_made_for(spec):
    check_covers("permute", spec, GOOD)


def test_every_leaf_the_spec_does_not_fit_is_listed(spec):
    leaves = {"biass": GOOD["bias"], "kernel": np.ones((3, 2), np.float32)}
    message = """\
permute: expected variables that the spec fits, got others:
  bias: is in the spec, but not in the variables; did you mean "biass"?
  kernel: the spec says shape (2, 3), got (3, 2)
  biass: is not in the spec
Derive it from these variables with infer_spec."""
    with refused(message):
        check_covers("permute", spec, leaves)


def test_a_leaf_of_another_rank_does_not_fit(spec):
    message = """\
match: expected variables that the spec fits, got others:
  bias: the spec says shape (3,), got (3, 1)
Derive it from these variables with infer_spec."""
    with refused(message):
        check_covers("match", spec, {**GOOD, "bias": np.ones((3, 1))})


def test_a_missing_leaf_without_a_near_name_gets_no_suggestion(spec):
    message = """\
permute: expected variables that the spec fits, got others:
  bias: is in the spec, but not in the variables
Derive it from these variables with infer_spec."""
    with refused(message):
        check_covers("permute", spec, {"kernel": GOOD["kernel"]})


def test_leaves_that_are_no_arrays_are_named():
    text = (
        "merge: model 1: expected arrays, got other leaves:\n  f: function\n"
        "Pass arrays or jax.ShapeDtypeStructs only; keep functions and strings inside "
        "apply_fn (for Equinox: equinox.partition(model, is_array))."
    )
    models = [{"w": np.ones(2)}, {"w": np.ones(2), "f": lambda x: x}]
    with pytest.raises(TypeError, match=f"^{re.escape(text)}$"):
        check_same("merge", models)


GENERATOR = (tree for tree in ())
WRONG_LISTS = {
    "a generator": (GENERATOR, "a generator. Pass list(models)."),
    "one tree": (
        {"a": 1, "b": 2, "c": 3, "d": 4},
        "one mapping, of a, b, c and 1 more. Pass [first, second].",
    ),
    "None": (None, "an object of type NoneType. Pass [first, second]."),
    "an array": (np.ones(2), "an object of type ndarray. Pass [first, second]."),
    "a path": ("runs/a", "an object of type str. Pass [first, second]."),
}


@pytest.mark.parametrize("name", WRONG_LISTS)
def test_models_are_a_list(name):
    models, rest = WRONG_LISTS[name]
    message = (
        "merge: models: expected a list of the variables of each model, got " + rest
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        check_models("merge", models)


def test_arrays_that_were_deleted_are_named():
    gone = {"a": jnp.ones(2), "b": jnp.ones(3), "c": np.ones(1)}
    kept = jax.tree.map(lambda leaf: leaf + 0, gone)
    gone["a"].delete()
    gone["b"].delete()
    message = (
        "merge: model 1: expected arrays that are there, got deleted ones, as a "
        "function that takes donated arguments leaves them:\n  a\n  b\nPass a copy "
        "made before, or load it again."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_same("merge", [kept, gone])
