import numpy as np
import pytest
from finetuned import merged

from jmudsc.finetunes.depth import depth_in_stack, depths
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.finetunes.option import Number, Option
from jmudsc.finetunes.settings import interpolate, Spot, value_at

SHARE = Option("share", 0.5, Number(0.0, 1.0), "a share")
WEIGHT = Option("weight", 1.0, Number(), "a weight", per_model=True)


def network(layers=5, seed=None):
    """Leaves of zeros, or of numbers, in so many layers and outside them."""
    names = [f"layers_{n}/kernel" for n in range(layers)]
    names = ["embed/table", *names, "head/kernel"]
    if seed is None:
        return {name: np.zeros((3, 3), np.float32) for name in names}
    generator = np.random.default_rng(seed)
    return {n: generator.normal(size=(3, 3)).astype(np.float32) for n in names}


def scales(lambda_, layers=5):
    """Return by how much task arithmetic scales each leaf."""
    model = network(layers, seed=0)
    found = merged([model], network(layers), "task_arithmetic", lambda_=lambda_)
    return {p: float((found[p] / model[p]).mean()) for p in model}


def test_one_value_is_for_all():
    assert set(scales(0.25).values()) == {0.25}


def test_the_first_pattern_that_matches_counts_and_the_default_where_none_does():
    found = scales({"layers_[01]/*": 0.5, "layers*": 0.25, "re:head.k": 2.0})
    expected = {"layers_0": 0.5, "layers_1": 0.5, "layers_2": 0.25, "head": 2.0}
    for name, scale in expected.items():
        assert found[f"{name}/kernel"] == pytest.approx(scale)
    assert found["embed/table"] == pytest.approx(1.0)


def test_a_list_runs_over_the_depth_and_what_is_in_no_layer_takes_its_first_entry():
    found = scales([0.0, 1.0, 0.5])
    expected = dict(zip(range(5), [0.0, 0.5, 1.0, 0.75, 0.5], strict=True))
    for number, scale in expected.items():
        assert found[f"layers_{number}/kernel"] == pytest.approx(scale, abs=1e-6)
    assert found["embed/table"] == found["head/kernel"] == 0.0


def test_a_pattern_may_have_a_list():
    found = scales({"layers*": [0.5, 1.5], "*": 0.25})
    assert found["layers_4/kernel"] == pytest.approx(1.5)
    assert found["head/kernel"] == pytest.approx(0.25)


def test_each_model_may_have_a_weight_a_gradient_or_patterns():
    models = [network(3, seed) for seed in (0, 1)]
    weight = [{"layers*": [1.0, 0.0], "*": 2.0}, 0.5]
    found = merged(models, network(3), "task_arithmetic", weight=weight)
    shares = {"layers_0/kernel": 1, "layers_1/kernel": 0.5, "layers_2/kernel": 0}
    for path in found:
        expected = shares.get(path, 2) * models[0][path] + 0.5 * models[1][path]
        np.testing.assert_allclose(found[path], expected, rtol=1e-5, atol=1e-6)


def test_patterns_may_hold_weights_of_each_model():
    models = [network(2, seed) for seed in (0, 1)]
    weight = {"head*": [1.0, 0.0], "*": [0.0, 1.0]}
    found = merged(models, network(2), "task_arithmetic", weight=weight)
    np.testing.assert_array_equal(found["head/kernel"], models[0]["head/kernel"])
    np.testing.assert_array_equal(found["embed/table"], models[1]["embed/table"])


def test_leaves_may_have_methods_of_their_own():
    models, base = [network(2, seed) for seed in (0, 1)], network(2)
    method = {"embed*": "linear", "*": "task_arithmetic"}
    found = merge_finetunes(models, base, method, lambda_=2.0).variables
    mean = (models[0]["embed/table"] + models[1]["embed/table"]) / 2
    np.testing.assert_allclose(found["embed/table"], mean, rtol=1e-6)
    total = 2 * (models[0]["head/kernel"] + models[1]["head/kernel"])
    np.testing.assert_allclose(found["head/kernel"], total, rtol=1e-6)


def test_excluded_leaves_are_those_of_the_base():
    base = network(2, 9)
    result = merge_finetunes([network(2, 0)], base, exclude=["head*", "re:s_1/"])
    for path, leaf in result.variables.items():
        is_excluded = path in ("head/kernel", "layers_1/kernel")
        assert np.array_equal(leaf, base[path]) == is_excluded
    assert result.changes == {
        "head/kernel": 'taken from the base: it is excluded by "head*"',
        "layers_1/kernel": 'taken from the base: it is excluded by "re:s_1/"',
    }


def test_interpolation_is_linear_between_entries():
    assert interpolate([2.0], 0.7) == 2.0
    assert interpolate([0.0, 1.0], 0.25) == 0.25
    assert interpolate([0.0, 1.0, 3.0], 1.0) == 3.0


def test_settings_nest_in_either_order():
    spot = Spot("a/b", 0.5)
    assert value_at(SHARE, {"x": 0.1, "*": [0.0, 1.0]}, spot, 2) == 0.5
    assert value_at(WEIGHT, [{"a/*": [0.0, 3.0]}, 4.0], spot, 2) == (1.5, 4.0)
    assert value_at(WEIGHT, {"a/*": [1.0, 2.0]}, spot, 2) == (1.0, 2.0)
    assert value_at(WEIGHT, {"c": [1.0, 2.0]}, spot, 2) == (1.0, 1.0)


def test_the_outermost_number_of_which_there_are_several_is_the_layer():
    names = [
        "m/block_0/Dense_0/k",
        "m/block_2/Dense_1/k",
        "m/block_10/Dense_0/k",
        "n_0/k",
    ]
    assert depths(names) == {names[0]: 0.0, names[1]: 0.5, names[2]: 1.0}
    assert depths(["layers/0/w", "layers/1/w"]) == {
        "layers/0/w": 0.0,
        "layers/1/w": 1.0,
    }
    assert depth_in_stack(0, 1) == 1.0
