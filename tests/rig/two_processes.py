"""One of two processes that merge together; run as a script: number, port.

Each reads its own batches. Prints, for variables that every process holds and for
variables and batches that are spread over both, the merged leaves.
"""

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import sharded
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import jmudsc

OPTIONS = {"method": "mudsc-zip", "refit": "least-squares"}
SPREAD = {"in": P(None, "all"), "bias": P("all"), "mid": P("all"), "out": P("all")}


def inputs():
    """Two models and four batches, the same in every process."""
    keys = jax.random.split(jax.random.key(0), 6)
    models = [sharded.draw(key) for key in keys[:2]]
    return (
        [jax.tree.map(np.asarray, model) for model in models],
        [np.asarray(jax.random.normal(key, (16, 8))) for key in keys[2:]],
    )


def merged(models, batches):
    key = jax.random.key(1)
    return jmudsc.merge(sharded.apply_fn, models, batches, key=key, **OPTIONS)


def main(number, port):
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    models, batches = inputs()
    own = merged(models, batches[number::2]).variables
    mesh = jax.make_mesh((2,), ("all",), axis_types=(AxisType.Auto,))
    spread = [
        {n: put(x, NamedSharding(mesh, SPREAD[n])) for n, x in model.items()}
        for model in models
    ]
    rows = NamedSharding(mesh, P("all"))
    half = slice(8 * number, 8 * number + 8)
    read = [
        jax.make_array_from_process_local_data(rows, batch[half]) for batch in batches
    ]
    result = merged(spread, read)
    found = result.variables
    assert all(x.sharding == spread[0][n].sharding for n, x in found.items())
    whole = multihost_utils.process_allgather(found, tiled=True)
    if number == 0:
        check_saved(dataclasses.replace(result, variables=whole))
    leaves = [{n: np.asarray(x).tolist() for n, x in v.items()} for v in (own, whole)]
    json.dump(dict(zip(("own batches", "spread"), leaves, strict=True)), sys.stdout)


def check_saved(result):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "merged.safetensors"
        jmudsc.save(file, result)
        for path, leaf in jmudsc.load(file).items():
            np.testing.assert_array_equal(leaf, result.variables[path])


def put(array, sharding):
    return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
