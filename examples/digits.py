"""Digits: what the examples share: 8 x 8 images of digits, and a training loop."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits


def steps() -> int:
    """Return how many steps of training were asked for on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=300, help="of training")
    return parser.parse_args().steps


def digits(classes=range(10)):
    """Return images `[n, 8, 8, 1]` and classes `[n]`, to train and to test."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype(np.float32) / 16
    known = np.isin(labels, list(classes))
    images, labels = images[known], labels[known].astype(np.int32)
    last = np.arange(len(labels)) % 4 == 3
    return (images[~last], labels[~last]), (images[last], labels[last])


def trained(forward, variables, data, steps, key, learning_rate=3e-3):
    """Train by Adam; `forward(variables, images) -> (logits, variables)`."""
    images, labels = map(jnp.asarray, data)
    optimizer = optax.adam(learning_rate)

    def loss(params, variables, rows):
        logits, updated = forward({**variables, "params": params}, images[rows])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows])
        return losses.mean(), updated

    @jax.jit
    def step(state, key):
        variables, moments = state
        rows = jax.random.randint(key, (64,), 0, len(labels))
        slopes, updated = jax.grad(loss, has_aux=True)(
            variables["params"], variables, rows
        )
        changes, moments = optimizer.update(slopes, moments)
        params = optax.apply_updates(variables["params"], changes)
        return {**updated, "params": params}, moments

    state = variables, optimizer.init(variables["params"])
    for own in jax.random.split(key, steps):
        state = step(state, own)
    return state[0]


def accuracy(apply_fn, variables, data):
    """Return the share of images whose class has the largest output."""
    images, labels = data
    return float((np.argmax(apply_fn(variables, images), -1) == labels).mean())
