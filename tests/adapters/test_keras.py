"""Keras: models on the JAX backend as pure functions, and back."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import keras
import numpy as np
import pytest

import jmudsc
from jmudsc import paths
from jmudsc.adapters import keras as adapter

layers = keras.layers

# Keras copies its variables in a way that NumPy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")


@pytest.fixture(autouse=True)
def _as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


def functional(seed):
    keras.utils.set_random_seed(seed)
    x = inputs = keras.Input((6, 6, 2))
    for width in (4, 6):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(width, 3)(x)))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3, name="head")(x))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.first = layers.Dense(5, activation="relu")
        self.memory = layers.GRU(4)
        self.head = layers.Dense(2)

    def call(self, x, training=False):
        return self.head(self.memory(self.first(x), training=training))


def batch(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape or (5, 6, 6, 2)).astype("f4")


def same(a, b):
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_paths_do_not_depend_on_what_was_built_before():
    trees = [adapter.functions(functional(seed)).variables for seed in range(2)]
    names = [list(paths.flatten(tree)) for tree in trees]
    assert names[0] == names[1]
    assert {"conv2d/kernel", "conv2d_1/kernel", "head/bias"} <= set(names[0])
    assert "batch_normalization_1/moving_mean" in names[0]
    assert not [name for name in names[0] if "seed" in name]


def test_outputs_are_those_of_the_model_and_statistics_move_as_in_training():
    model = functional(0)
    variables, apply_fn, update_fn = adapter.functions(model)
    same(apply_fn(variables, batch(1)), model(batch(1), training=False))
    updated = jax.jit(update_fn)(variables, batch(1))
    model(batch(1), training=True)
    moved = adapter.functions(model).variables
    for path, leaf in paths.flatten(moved).items():
        found = paths.flatten(updated)[path]
        np.testing.assert_allclose(found, leaf, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_merge_goes_back_into_a_model_and_its_own_file(tmp_path):
    models = [functional(0), functional(1)]
    (first, apply_fn, update_fn), (second, *_) = map(adapter.functions, models)
    result = jmudsc.merge(
        apply_fn,
        [first, second],
        [batch(0), batch(1)],
        update_fn=update_fn,
        key=jax.random.key(0),
    )
    merged = adapter.build(models[0], result.variables)
    same(merged(batch(2), training=False), apply_fn(result.variables, batch(2)))
    same(
        adapter.functions(models[0]).variables["head"]["kernel"],
        first["head"]["kernel"],
    )
    merged.save(tmp_path / "merged.keras")
    again = keras.models.load_model(tmp_path / "merged.keras")
    same(again(batch(2), training=False), merged(batch(2), training=False))


def test_a_subclassed_model():
    keras.utils.set_random_seed(0)
    model, x = Subclassed(), batch(0, 5, 7, 3)
    model(x)
    variables, apply_fn, update_fn = adapter.functions(model)
    same(apply_fn(variables, x), model(x))
    assert update_fn is None
    spec = jmudsc.infer_spec(apply_fn, variables, x)
    assert {label.size for label in spec.labels.values()} == {4, 5}


def test_a_model_that_is_not_built_is_refused():
    with pytest.raises(ValueError, match="keras") as error:
        adapter.functions(keras.Sequential([layers.Dense(3)], name="plain"))
    assert str(error.value) == (
        "keras.functions: expected a model that is built, got plain, which has no "
        "variables yet. Call it on a batch first."
    )


def test_another_backend_is_refused(monkeypatch):
    model = functional(0)
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    with pytest.raises(RuntimeError, match="keras") as error:
        adapter.functions(model)
    assert str(error.value) == (
        'keras.functions: expected Keras on the JAX backend, got "torch". Set the '
        "environment variable KERAS_BACKEND=jax before Keras is imported."
    )


def test_the_statistics_of_a_norm_are_told_and_set_by_a_refit():
    models = [functional(0), functional(1)]
    (first, apply_fn, update_fn), (second, *_) = map(adapter.functions, models)
    batches = [batch(n, 64, 6, 6, 2) for n in range(3)]
    given = {"refit": "least-squares", "held_out": 0.0, "key": jax.random.key(0)}
    fitted = jmudsc.merge(apply_fn, [first, second], batches, **given)
    assert fitted.spec.variances == {
        "batch_normalization/moving_mean": "batch_normalization/moving_variance",
        "batch_normalization_1/moving_mean": "batch_normalization_1/moving_variance",
    }
    again = jmudsc.reset_batch_stats(update_fn, fitted.variables, batches)
    for path, leaf in paths.flatten(again).items():
        own = paths.flatten(fitted.variables)[path]
        np.testing.assert_allclose(own, leaf, rtol=0.02, atol=0.01, err_msg=path)
