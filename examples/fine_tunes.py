"""Fine-tunes of one base: no matching, with and without unlabelled images."""

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
        x = nn.relu(nn.Dense(64)(x))
        return nn.Dense(10)(nn.relu(nn.Dense(64)(x)))


# The base knows digits in the middle; each fine-tune learns them somewhere else.
changes = {
    "left": lambda images: np.roll(images, -2, axis=2),
    "right": lambda images: np.roll(images, 2, axis=2),
    "down": lambda images: np.roll(images, 2, axis=1),
}
apply_fn = Net().apply
forward = lambda variables, x: (apply_fn(variables, x), variables)
(images, labels), (held_out, answers) = digits()
count, key = steps(), jax.random.key(0)

base = trained(forward, Net().init(key, images[:1]), (images, labels), count, key)
fine_tunes = [
    trained(forward, base, (np.array(change(images)), labels), count, key, 1e-3)
    for change in changes.values()
]


def mean_accuracy(variables):
    """Return the accuracy on all three tasks together."""
    tests = [(np.array(change(held_out)), answers) for change in changes.values()]
    return np.mean([accuracy(apply_fn, variables, test) for test in tests])


alone = [
    accuracy(apply_fn, tuned, (np.array(change(held_out)), answers))
    for tuned, change in zip(fine_tunes, changes.values(), strict=True)
]
print(f"each fine-tune on its own task  {np.mean(alone):.3f}")
print(f"base                            {mean_accuracy(base):.3f}")
seen = {
    "apply_fn": apply_fn,
    "batches": [change(images)[:256] for change in changes.values()],
    "owners": [0, 1, 2],  # whose task each batch is of
}
for method, more in {
    "linear": {},
    "task_arithmetic": {},
    "ties": {},
    "tsv": {},
    "regmean": seen,
    "featcal": seen,
}.items():
    result = jmudsc.merge_finetunes(
        fine_tunes, base=base, method=method, key=key, **more
    )
    print(f"{method:31} {mean_accuracy(result.variables):.3f}")
