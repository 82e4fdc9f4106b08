"""Three networks of three or four digits each become one, aligned to their mean."""

import jax
from digits import accuracy, digits, steps, trained

import jmudsc


def apply_fn(variables, x):
    """Two hidden layers, without any library."""
    p = variables["params"]
    x = jax.nn.relu(x.reshape(len(x), -1) @ p["first"] + p["bias"][0])
    return jax.nn.relu(x @ p["second"] + p["bias"][1]) @ p["head"]


def network(key):
    """Draw a network by He's rule."""
    keys = jax.random.split(key, 3)
    sizes = {"first": (64, 64), "second": (64, 64), "head": (64, 10)}
    leaves = {
        name: jax.random.normal(k, size) * (2 / size[0]) ** 0.5
        for k, (name, size) in zip(keys, sizes.items(), strict=True)
    }
    return {"params": {**leaves, "bias": jax.numpy.zeros((2, 64))}}


_, everything = digits()
count = steps()
parents, batches = [], []
for seed, classes in enumerate([range(3), range(3, 6), range(6, 10)]):
    key = jax.random.key(seed)
    data, _ = digits(classes)
    forward = lambda variables, x: (apply_fn(variables, x), variables)
    parents.append(trained(forward, network(key), data, count, key))
    batches.append(data[0][:256])

result = jmudsc.merge(
    apply_fn,
    parents,
    batches,
    owners=[0, 1, 2],
    reference="mean",  # no parent leads
    refit="least-squares",
    key=jax.random.key(0),
)
for number, parent in enumerate(parents):
    print(f"parent {number}  {accuracy(apply_fn, parent, everything):.3f}")
print(f"merged    {accuracy(apply_fn, result.variables, everything):.3f}")
