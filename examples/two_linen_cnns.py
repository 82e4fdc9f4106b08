"""Two linen CNNs that know five digits each become one that knows all ten."""

import flax.linen as nn
import jax
from digits import accuracy, digits, steps, trained

import jmudsc


class Net(nn.Module):
    """Two convolutions and a head for all classes."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        x = nn.relu(nn.Conv(32, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2)))


apply_fn = Net().apply
halves = [range(5), range(5, 10)]
_, everything = digits()
count = steps()

parents, batches = [], []
for seed, classes in enumerate(halves):
    train, _ = digits(classes)
    variables = Net().init(jax.random.key(seed), train[0][:1])
    forward = lambda variables, x: (apply_fn(variables, x), variables)
    parents.append(trained(forward, variables, train, count, jax.random.key(seed)))
    batches.append(train[0][:256])

average = jax.tree.map(lambda *leaves: sum(leaves) / 2, *parents)
result = jmudsc.merge(
    apply_fn,
    parents,
    batches,
    owners=[0, 1],  # which parent knows the task of each batch
    method="mudsc-align",  # for narrow networks that share little, better than a zip
    refit="least-squares",
    key=jax.random.key(0),
)
for name, variables in {
    "parent 0": parents[0],
    "parent 1": parents[1],
    "average": average,
    "merged": result.variables,
}.items():
    print(f"{name:10} {accuracy(apply_fn, variables, everything):.3f}")
