"""Two Keras models become one, which Keras saves and loads."""

import os

os.environ["KERAS_BACKEND"] = "jax"  # before keras is imported

import jax
import keras
import numpy as np
from digits import digits, steps

import jmudsc
from jmudsc.adapters import keras as adapter


def make():
    """Return a model that is not trained yet."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, padding="same"),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss)
    return model


def accuracy(model, data):
    """Return the share of images whose class has the largest output."""
    return float((np.argmax(model(data[0], training=False), -1) == data[1]).mean())


_, everything = digits()
epochs = max(1, steps() // 15)
models, batches = [], []
for seed, classes in enumerate([range(5), range(5, 10)]):
    keras.utils.set_random_seed(seed)
    (images, labels), _ = digits(classes)
    model = make()
    model.fit(images, labels, batch_size=64, epochs=epochs, verbose=0)
    models.append(model)
    batches.append(images[:256])

first, apply_fn, update_fn = adapter.functions(models[0])
second = adapter.functions(models[1]).variables
result = jmudsc.merge(
    apply_fn,
    [first, second],
    batches,
    update_fn=update_fn,
    owners=[0, 1],
    method="mudsc-align",  # for narrow networks that share little, better than a zip
    refit="least-squares",
    key=jax.random.key(0),
)
merged = adapter.build(models[0], result.variables)
for name, model in {
    "parent 0": models[0],
    "parent 1": models[1],
    "merged": merged,
}.items():
    print(f"{name:10} {accuracy(model, everything):.3f}")
