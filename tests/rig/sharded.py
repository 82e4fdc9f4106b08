"""Merges sharded over eight devices, beside those of one device; run as a script.

Prints a JSON object: case -> largest difference of a leaf, and if leaves stay spread.
"""

import json
import os
import sys

if __name__ == "__main__":  # before JAX is imported
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jmudsc

SPREAD = {
    "in": P(None, "model"),
    "bias": P("model"),
    "mid": P("data", "model"),
    "out": P("model", None),
}
CASES = {
    "mudsc-zip, automatic": (AxisType.Auto, {"method": "mudsc-zip"}),
    "mudsc-align, explicit": (AxisType.Explicit, {"method": "mudsc-align"}),
    "weight-align": (AxisType.Auto, {"method": "weight-align"}),
    "refit and repair": (
        AxisType.Auto,
        {"method": "mudsc-zip", "refit": "least-squares", "repair": "rescale"},
    ),
}


def apply_fn(variables, x):
    x = jax.nn.relu(x @ variables["in"] + variables["bias"][None])
    return jax.nn.relu(x @ variables["mid"]) @ variables["out"]


def draw(key):
    keys = jax.random.split(key, 3)
    return {
        "in": jax.random.normal(keys[0], (8, 16)),
        "bias": jnp.zeros(16),
        "mid": jax.random.normal(keys[1], (16, 16)),
        "out": jax.random.normal(keys[2], (16, 4)),
    }


def main():
    keys = jax.random.split(jax.random.key(0), 4)
    models = [draw(key) for key in keys[:2]]
    batches = [jax.random.normal(key, (16, 8)) for key in keys[2:]]
    found = {}
    for name, (kind, options) in CASES.items():
        mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
        put = lambda x, spec, mesh=mesh: jax.device_put(x, NamedSharding(mesh, spec))
        spread = [{n: put(x, SPREAD[n]) for n, x in m.items()} for m in models]
        read = [put(batch, P("data")) for batch in batches]
        one, many = (
            jmudsc.merge(apply_fn, *arguments, key=jax.random.key(1), **options)
            for arguments in ((models, batches), (spread, read))
        )
        gaps = [
            np.abs(np.asarray(x) - np.asarray(many.variables[n])).max()
            for n, x in one.variables.items()
        ]
        kept = all(
            x.sharding == spread[0][n].sharding for n, x in many.variables.items()
        )
        found[name] = [float(max(gaps)), kept]
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
