"""Five networks of one task, an ensemble, become one that follows all of them."""

import flax.linen as nn
import jax
import numpy as np
from digits import accuracy, digits, steps, trained

import jmudsc


class Net(nn.Module):
    """Two hidden layers."""

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(48)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(48)(x)))


apply_fn = Net().apply
(images, labels), test = digits()
count = steps()

members = []
for seed in range(5):
    key = jax.random.key(seed)
    rows = np.random.default_rng(seed).integers(0, len(labels), len(labels) // 4)
    forward = lambda variables, x: (apply_fn(variables, x), variables)
    variables = Net().init(key, images[:1])
    members.append(
        trained(forward, variables, (images[rows], labels[rows]), count, key)
    )

result = jmudsc.merge(
    apply_fn,
    members,
    np.split(images[:1280], 5),
    reference="mean",
    refit="least-squares",
    key=jax.random.key(0),
)
alone = [accuracy(apply_fn, member, test) for member in members]
together = lambda _, x: np.mean([apply_fn(member, x) for member in members], 0)
print(f"one member, at best  {max(alone):.3f}")
print(f"ensemble of five     {accuracy(together, None, test):.3f}")
print(f"merged, one network  {accuracy(apply_fn, result.variables, test):.3f}")
