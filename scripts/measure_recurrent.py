"""What does it bring to refit recurrent kernels, and rows of an embedding?

Pairs of small GRUs, trained apart on scikit-learn's digits (0-4 and 5-9), are merged by
mudsc-zip and refit: their last layer alone, or all that a refit reaches. They read an
image row by row, or in squares of four pixels as words of a vocabulary of 16. Prints
joint test accuracy, and the mean of the accuracies on each task among its own classes
(of a parent that on its own task).

    python scripts/measure_recurrent.py --seeds 0 1 2 3 4 5 6
"""

import argparse
import functools
import logging
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import jmudsc
from jmudsc.experiments.datasets import digits
from jmudsc.tables import mean_and_std, table

UNITS, STEPS, RATE, BATCH, CLASSES = 32, 600, 1e-2, 64, 10
WORDS, WIDTH = 16, 8
READERS = ("rows", "words")
WAYS = {
    "merge": None,
    "last layer": ("out/*",),
    "all but the embedding": ("gates/*", "out/*"),
    "all": (),
}


def drawn(key, reader: str) -> dict:
    """Draw the variables of a GRU."""
    keys = iter(jax.random.split(key, 12))
    size = {"rows": 8, "words": WIDTH}[reader]

    def kernel(*shape):
        return jax.random.normal(next(keys), shape) / shape[0] ** 0.5

    gates = {
        gate: {
            "in": kernel(size, UNITS),
            "again": kernel(UNITS, UNITS),
            "bias": jnp.zeros(UNITS),
        }
        for gate in ("reset", "update", "new")
    }
    out = {"kernel": kernel(UNITS, CLASSES), "bias": jnp.zeros(CLASSES)}
    words = {"words": kernel(WORDS, WIDTH)} if reader == "words" else {}
    return {"gates": gates, "out": out, **words}


def apply_fn(variables: dict, x: jax.Array) -> jax.Array:
    """Read a sequence of vectors, or of numbers of words; return logits."""
    x = variables["words"][x] if "words" in variables else x
    gates = variables["gates"]

    def put(gate, x, h):
        own = gates[gate]
        return x @ own["in"] + own["bias"][None], h @ own["again"]

    def step(h, x):
        reset, update = (jax.nn.sigmoid(sum(put(g, x, h))) for g in ("reset", "update"))
        new, again = put("new", x, h)
        return (1 - update) * jnp.tanh(new + reset * again) + update * h, None

    h, _ = lax.scan(step, jnp.zeros((len(x), UNITS)), jnp.swapaxes(x, 0, 1))
    return h @ variables["out"]["kernel"] + variables["out"]["bias"][None]


def read(images: np.ndarray, reader: str) -> np.ndarray:
    """Lay images of 8 x 8 out as the reader takes them."""
    grey = np.asarray(images, np.float32).reshape(-1, 8, 8)
    if reader == "rows":
        return grey
    low, high = grey.min(), grey.max()
    quarters = grey.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16)
    return np.clip((quarters - low) / (high - low) * WORDS, 0, WORDS - 1).astype(int)


@functools.partial(jax.jit, static_argnames="reader")
def trained(key, x: jax.Array, classes: jax.Array, reader: str) -> Any:
    """Train a network by Adam."""
    first, rest = jax.random.split(key)
    optimizer = optax.adam(RATE)

    def loss(variables, rows):
        logits = apply_fn(variables, x[rows])
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, classes[rows])
        return losses.mean()

    def step(carry, key):
        variables, state = carry
        rows = jax.random.randint(key, (BATCH,), 0, len(x))
        gradient = jax.grad(loss)(variables, rows)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(variables, updates), state), None

    start = drawn(first, reader)
    keys = jax.random.split(rest, STEPS)
    (variables, _), _ = lax.scan(step, (start, optimizer.init(start)), keys)
    return variables


def scores(variables: dict, x: np.ndarray, classes: np.ndarray) -> tuple[float, list]:
    """Return joint accuracy, and for each task that among its own classes."""
    logits = np.asarray(apply_fn(variables, jnp.asarray(x)))
    joint = float((logits.argmax(axis=1) == classes).mean())
    tasks = []
    for first in (0, 5):
        rows = (classes >= first) & (classes < first + 5)
        best = logits[rows, first : first + 5].argmax(axis=1) + first
        tasks.append((best == classes[rows]).mean())
    return joint, tasks


def measured(reader: str, images: int, seed: int) -> dict[str, tuple[float, float]]:
    """Train a pair, merge it and refit it in every way."""
    training, test = digits()
    tasks = [training.classes < 5, training.classes >= 5]
    seen = [(read(training.images[t], reader), training.classes[t]) for t in tasks]
    keys = jax.random.split(jax.random.key(seed), 3)
    parents = [
        trained(key, jnp.asarray(x), jnp.asarray(classes), reader)
        for key, (x, classes) in zip(keys, seen, strict=False)
    ]
    held = read(test.images, reader), np.asarray(test.classes)
    order = [np.random.default_rng(seed).permutation(len(x))[:images] for x, _ in seen]
    batches = [jnp.asarray(x[rows]) for (x, _), rows in zip(seen, order, strict=True)]
    merge = functools.partial(
        jmudsc.merge, apply_fn, parents, batches, method="mudsc-zip", key=keys[2]
    )
    found = {}
    for way, only in WAYS.items():
        if reader == "rows" and way == "all but the embedding":
            continue
        fit = {} if only is None else {"refit": "least-squares", "owners": [0, 1]}
        result = merge(**fit, **({"only": only} if only else {}))
        joint, apart = scores(result.variables, *held)
        found[way] = joint, float(np.mean(apart))
    own = [scores(parent, *held) for parent in parents]
    joint = float(np.mean([each[0] for each in own]))
    apart = [each[1][task] for task, each in enumerate(own)]
    found["parents"] = joint, float(np.mean(apart))
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(7)))
    parser.add_argument("--images", type=int, nargs="+", default=[60, 500])
    parser.add_argument("--readers", nargs="+", default=list(READERS))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    rows = []
    for reader in args.readers:
        for images in args.images:
            found = [measured(reader, images, seed) for seed in args.seeds]
            for way in found[0]:
                both = zip(*(each[way] for each in found), strict=True)
                rows.append([f"{reader}, {images}, {way}", *map(mean_and_std, both)])
                print(rows[-1], file=sys.stderr, flush=True)
    print(table(["reads, images of a task, refit", "joint", "tasks apart"], rows))


if __name__ == "__main__":
    main()
