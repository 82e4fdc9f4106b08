"""One recipe merged by the command line in two processes, as docs/devices.md says."""

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np

from jmudsc.checkpoints.save import save_variables

MODEL = """
import os
import signal

import jax
import numpy as np
import jmudsc.checkpoints.spread as saving


def apply_fn(variables, x):
    params, statistics = variables["params"], variables["batch_stats"]
    x = x @ params["in"] - statistics["mean"][None]
    x = jax.nn.relu(x * jax.lax.rsqrt(statistics["var"] + 1e-5)[None])
    return jax.nn.relu(x @ params["mid"]) @ params["out"]


def update_fn(variables, x):
    x = x @ variables["params"]["in"]
    return {**variables, "batch_stats": {"mean": x.mean(0), "var": x.var(0)}}


def batches(count):
    draw = np.random.default_rng(0)
    return [draw.standard_normal((16, 8)).astype(np.float32) for _ in range(count)]


write = saving.write_spread


def dying(directory, variables):
    write(directory, variables)
    os.kill(os.getpid(), signal.SIGKILL)


if "DIES" in os.environ:  # when all arrays are written, and nothing else is
    saving.write_spread = dying
"""

RECIPE = """
models: [{0}]
apply_fn: processes_model:apply_fn
batches: {{factory: processes_model:batches, count: 4}}
method: {1}
output: {2}
"""
TUNED = """
base: base
models: [m0, m1.npz]
method: ties
output: {0}
"""
REPAIRED = "update_fn: processes_model:update_fn\nrefit: least-squares\n"


def make_project(folder):
    """Write models, as orbax checkpoints and as files, and recipes for them."""
    for number in range(3):
        draw = np.random.default_rng(number)
        shapes = {"in": (8, 16), "mid": (16, 16), "out": (16, 3)}
        params = {
            n: draw.standard_normal(x).astype(np.float32) for n, x in shapes.items()
        }
        statistics = {
            "mean": draw.standard_normal(16).astype(np.float32),
            "var": draw.uniform(1, 2, 16).astype(np.float32),
        }
        variables = {"params": params, "batch_stats": statistics}
        name = "base" if number == 2 else f"m{number}"
        save_variables(folder / name, variables)
        save_variables(folder / f"{name}.npz", variables)
    (folder / "processes_model.py").write_text(MODEL)
    for name, models, method, more in (
        ("zip", "m0, m1", "mudsc-zip", REPAIRED),
        ("file", "m0.npz, m1.npz", "weight-align", ""),
    ):
        output = f"{name}.npz" if name == "file" else name
        text = RECIPE.format(models, method, output) + more
        (folder / f"{name}.yaml").write_text(text)
    for name in ("tuned", "tuned.safetensors"):
        (folder / f"{name}.yaml").write_text(TUNED.format(name))


def commands(recipe):
    """Return the arguments of both commands of the document, for a recipe."""
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
    text = re.search(r"^```sh\n(jmudsc merge .*?)^```$", page, re.M | re.S)[1]
    text = text.replace("recipe.yaml", shlex.quote(str(recipe)))
    text = text.replace("12345", str(free_port()))
    return [shlex.split(line.rstrip(" &"))[1:] for line in text.splitlines()]


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def started(recipe, *options, dying=None):
    """Start both processes of a merge; one of them dies when it has written arrays."""
    both = []
    for number, told in enumerate(commands(recipe)):
        arguments = [*told, *options]
        code = f"import sys; from jmudsc.cli import main; sys.argv[1:] = {arguments}"
        environment = dict(os.environ) | ({"DIES": "1"} if dying == number else {})
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}; main()"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        both.append(process)
    return both


def ended(both):
    """Wait for both; return what each printed, on standard output and on error."""
    try:
        told = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    return [
        (process.returncode, *told) for process, told in zip(both, told, strict=True)
    ]
