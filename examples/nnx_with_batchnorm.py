"""Two NNX networks with BatchNorm: statistics are reset, and the model comes back."""

import jax
import numpy as np
import optax
from digits import digits, steps
from flax import nnx

import jmudsc
from jmudsc.adapters import nnx as adapter


class Net(nnx.Module):
    """A convolution, BatchNorm and a head."""

    def __init__(self, rngs):
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.first(x)))
        return self.head(nnx.relu(self.second(x)).mean(axis=(1, 2)))


@nnx.jit
def step(model, optimizer, images, labels):
    """Take one step of training."""

    def loss(model):
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))


def accuracy(model, data):
    """Return the share of images whose class has the largest output."""
    model.eval()
    return float((np.argmax(model(data[0]), -1) == data[1]).mean())


_, everything = digits()
count = steps()
models, batches = [], []
for seed, classes in enumerate([range(5), range(5, 10)]):
    (images, labels), _ = digits(classes)
    model = Net(nnx.Rngs(seed))
    optimizer = nnx.Optimizer(model, optax.adam(3e-3), wrt=nnx.Param)
    rows = np.random.default_rng(seed).integers(0, len(labels), (count, 64))
    for chosen in rows:
        step(model, optimizer, images[chosen], labels[chosen])
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
