"""Two networks of different tasks share one trunk; each keeps its own head."""

import flax.linen as nn
import jax
import numpy as np
from digits import accuracy, digits, steps, trained

import jmudsc


class Net(nn.Module):
    """A trunk of two layers, and a head of its own width."""

    classes: int

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        x = nn.relu(nn.Dense(64, name="first")(x))
        x = nn.relu(nn.Dense(64, name="second")(x))
        return nn.Dense(self.classes, name="head")(x)


# Which digit it is, and whether it is even.
tasks = {
    "digit": (Net(10), lambda labels: labels),
    "even": (Net(2), lambda y: 1 - y % 2),
}
(images, labels), (held_out, answers) = digits()
count = steps()

parents, apply_fns = [], []
for seed, (net, target) in enumerate(tasks.values()):
    variables = net.init(jax.random.key(seed), images[:1])
    forward = lambda variables, x, net=net: (net.apply(variables, x), variables)
    data = images, target(labels)
    parents.append(trained(forward, variables, data, count, jax.random.key(seed)))
    apply_fns.append(net.apply)

result = jmudsc.merge(
    apply_fns,
    parents,
    np.split(images[:1024], 4),
    separate="params/head/*",
    method="mudsc-align",  # for narrow networks that share little, better than a zip
    refit="least-squares",
    key=jax.random.key(0),
)
for number, (name, (net, target)) in enumerate(tasks.items()):
    test = held_out, target(answers)
    alone = accuracy(net.apply, parents[number], test)
    merged = accuracy(net.apply, result.networks[number], test)
    print(f"{name:6} alone {alone:.3f}   on the shared trunk {merged:.3f}")
