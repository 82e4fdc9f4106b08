"""NNX: models as pure functions, and back."""

import flax.nnx as nnx
import jax
import numpy as np
import pytest

import jmudsc
from jmudsc import paths
from jmudsc.adapters import nnx as adapter


class Net(nnx.Module):
    """All that makes a model more than its parameters."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(8, 8, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.memory = nnx.RNN(nnx.GRUCell(8, 5, rngs=rngs))
        self.head = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = x + nnx.relu(layer(x))
        x = self.dropout(self.norm(x))
        x = x + self.attention(x)
        return self.head(self.memory(x)[:, -1])


def batch(seed):
    return jax.random.normal(jax.random.key(seed), (4, 6, 8))


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_outputs_are_those_of_the_model_in_evaluation():
    model = Net(nnx.Rngs(0))
    variables, apply_fn, _ = adapter.functions(model)
    count = int(model.dropout.rngs.count[...])
    found = apply_fn(variables, batch(0))
    assert int(model.dropout.rngs.count[...]) == count
    assert not model.dropout.deterministic
    model.eval()
    same(found, model(batch(0)))


def test_variables_have_no_random_states_and_keep_the_order_of_lists():
    variables, _, _ = adapter.functions(Net(nnx.Rngs(0)))
    assert list(variables["layers"]) == list(range(11))
    leaves = paths.flatten(variables)
    assert not [path for path in leaves if "rng" in path or "count" in path]


def test_statistics_are_updated_as_in_training_without_dropout():
    model = Net(nnx.Rngs(0))
    variables, _, update_fn = adapter.functions(model)
    updated = update_fn(variables, batch(1))
    model.eval()
    model.set_attributes(use_running_average=False)
    model(batch(1))
    same(updated["norm"]["mean"], model.norm.mean[...])
    same(updated["norm"]["var"], model.norm.var[...])
    same(updated["head"]["kernel"], variables["head"]["kernel"])


def test_a_model_without_statistics_has_nothing_to_update():
    assert adapter.functions(nnx.Linear(2, 3, rngs=nnx.Rngs(0))).update_fn is None


def test_a_merge_goes_back_into_a_model_bit_by_bit():
    models = [Net(nnx.Rngs(seed)) for seed in range(2)]
    (first, apply_fn, update_fn), (second, *_) = map(adapter.functions, models)
    result = jmudsc.merge(
        apply_fn,
        [first, second],
        [batch(0), batch(1)],
        update_fn=update_fn,
        key=jax.random.key(0),
    )
    merged = adapter.build(models[0], result.variables)
    assert isinstance(merged, Net)
    merged.eval()
    same(merged(batch(2)), apply_fn(result.variables, batch(2)))
    jax.tree.map(same, adapter.functions(merged).variables, result.variables)
    jax.tree.map(same, adapter.functions(models[0]).variables, first)


def test_a_call_of_its_own():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    variables, apply_fn, _ = adapter.functions(model, lambda m, batch: m(batch["x"]))
    x = jax.random.normal(jax.random.key(0), (5, 2))
    same(apply_fn(variables, {"x": x}), model(x))


def test_variables_of_another_model_are_refused():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    wrong = {"kernal": np.zeros((2, 3)), "bias": np.zeros(4)}
    with pytest.raises(ValueError, match="nnx") as error:
        adapter.build(model, wrong)
    assert str(error.value) == (
        "nnx.build: expected the variables of this model, got others:\n"
        '  "bias" has shape [4], in the model [3]\n'
        '  "kernal" is not in the model; did you mean "kernel"?\n'
        '  "kernel" is missing; did you mean "kernal"?\n'
        "Pass variables that `functions` made of a model of this architecture, or what "
        "a merge of them returned."
    )
