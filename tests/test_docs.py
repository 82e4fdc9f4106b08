"""Every code block of the documents runs, and prints what stands below it."""

import inspect
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_llama as llama
import yaml
from safetensors.numpy import save_file

import jmudsc
from jmudsc.cli import COMMANDS
from jmudsc.recipes.reader import parse_recipe

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text() for page in (ROOT / "docs").glob("*.md")}
WITH_CODE = [name for name, text in PAGES.items() if "\n```python\n" in text]


def blocks(language, page):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def apply_fn(variables, x):
    variables = variables.get("params", variables)
    return jax.nn.relu(x @ variables["in"]) @ variables["head"]["out"]


def network(seed):
    draw = np.random.default_rng(seed).normal
    weights = {"in": draw(size=(4, 8)), "head": {"out": draw(size=(8, 2))}}
    return jax.tree.map(jnp.float32, weights)


def merged_so_far(folder):
    """Return what pages about merging take for given."""
    models, key = [network(0), network(1)], jax.random.key(0)
    batches = [jnp.ones((8, 4)), jnp.zeros((8, 4))]
    return {
        "jax": jax,
        "jmudsc": jmudsc,
        "apply_fn": apply_fn,
        "models": models,
        "batches": batches,
        "key": key,
        "result": jmudsc.merge(apply_fn, models, batches, key=key),
    }


def files(folder):
    """Write the files that the page of checkpoints reads."""
    run = {"params": {"w": np.ones(2)}, "batch_stats": {"m": np.ones(2)}, "step": 3}
    with ocp.StandardCheckpointer() as saver:
        saver.save(folder / "runs/a/checkpoints/100", run)
    names = ["encoder.layers.0.weight", "head.weight", "norm.num_batches_tracked"]
    save_file(
        {name: np.ones(2, np.float32) for name in names},
        folder / "pretrained.safetensors",
    )
    for seed, name in enumerate("ab"):
        leaves = {"in": network(seed)["in"], "head/out": network(seed)["head"]["out"]}
        save_file(
            {path: np.asarray(leaf) for path, leaf in leaves.items()},
            folder / f"{name}.safetensors",
        )
    base = llama.leaves(0)
    for seed, name in enumerate(("base", "code", "chat")):
        leaves = llama.leaves(seed, near=base) if seed else base
        llama.write(folder / "hub" / name, leaves)
    blank = jax.tree.map(lambda x: jnp.zeros_like(x, "float32"), run) | {"step": 0}
    return merged_so_far(folder) | {"blank": blank}


def heads(folder):
    """Return two networks whose heads are of different tasks."""

    def reconstruct(variables, x):
        return jax.nn.relu(x @ variables["in"]) @ variables["decoder"]["out"]

    averaged = [{"params": network(n), "ema": network(n)} for n in range(2)]
    out = jnp.float32(np.random.default_rng(2).normal(size=(8, 4)))
    return merged_so_far(folder) | {
        "classify": apply_fn,
        "reconstruct": reconstruct,
        "models": averaged,
        "a": network(0),
        "b": {"in": network(1)["in"], "decoder": {"out": out}},
    }


def one_device(folder):
    """Return what the page on devices takes for given, and a mesh of what is there."""
    mesh = jax.sharding.Mesh(
        np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model")
    )
    make = lambda shape, names: mesh  # the page's mesh has eight devices
    sharding = {n: getattr(jax.sharding, n) for n in ("NamedSharding", "PartitionSpec")}
    own = type("jax", (), {**vars(jax), "make_mesh": staticmethod(make)})
    return merged_so_far(folder) | sharding | {"jax": own}


def fine_tunes(folder):
    """Return two fine-tunes of one base that has BatchNorm, and a run's checkpoints."""

    def apply(variables, x):
        h = x @ variables["in"]
        h = (h - variables["norm"]["mean"]) * jax.lax.rsqrt(variables["norm"]["var"])
        return jax.nn.relu(h) @ variables["head"]["out"]

    def update_fn(variables, x):
        h, old = x @ variables["in"], variables["norm"]
        new = {"mean": h.mean(axis=0), "var": h.var(axis=0)}
        mixed = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, old, new)
        return {**variables, "norm": mixed}

    draw = np.random.default_rng(0).normal
    norm = {"mean": jnp.zeros(8), "var": jnp.ones(8)}
    trees = [{**network(0), "norm": norm} for _ in range(3)]
    base, *models = [
        jax.tree.map(lambda x: x + jnp.float32(0.1 * abs(draw(size=x.shape))), tree)
        for tree in trees
    ]
    goal = jax.tree.map(lambda *x: sum(x) / len(x), *models)
    distance = lambda a, b: float(jnp.square(a - b).sum())
    score = lambda v: -sum(jax.tree.leaves(jax.tree.map(distance, v, goal)))
    return {
        "jax": jax,
        "jnp": jnp,
        "jmudsc": jmudsc,
        "apply_fn": apply,
        "update_fn": update_fn,
        "base": base,
        "models": models,
        "score": score,
        "batches": [jnp.float32(draw(size=(40, 4))) for _ in models],
    }


# What a page takes for given, besides an empty folder to work in.
GIVEN = {
    "checkpoints": files,
    "devices": one_device,
    "faq": merged_so_far,
    "method": heads,
    "verdict": merged_so_far,
    "which-method": fine_tunes,
}
# What is printed at the end and said in the text.
PRINTED_LAST = {"spec": 'is frozen by "params/Conv_0/*"\n'}
# Pages whose printed output is of no interest.
SILENT = ("index", "verdict")


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras, saving
@pytest.mark.parametrize("name", WITH_CODE)
def test_a_page_runs_and_prints_what_it_says(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = GIVEN.get(name, lambda folder: {})(tmp_path)
    with jax.numpy_rank_promotion("allow"):  # readers' code may rely on it
        for block in blocks("python", PAGES[name]):
            exec(block, scope)
    printed = capsys.readouterr().out
    if name not in SILENT:
        said = "".join(blocks("text", PAGES[name]))
        assert printed == said + PRINTED_LAST.get(name, "")


def test_the_commands_of_the_page_of_methods_are_commands():
    lines = "".join(blocks("sh", PAGES["which-method"])).splitlines()
    assert lines
    for line in lines:
        program, name, _, *options = line.split()
        assert program == "jmudsc"
        known = inspect.signature(COMMANDS[name]).parameters
        assert {o[2:] for o in options if o.startswith("--")} <= set(known), line


def test_the_recipes_of_the_page_of_methods_can_be_read():
    found = [yaml.safe_load(block) for block in blocks("yaml", PAGES["which-method"])]
    methods = [parse_recipe(content).options.method for content in found]
    methods_of_cases = ["mudsc-zip", "linear", "wudi", "wudi", "featcal"]
    assert methods == [*methods_of_cases, "task_arithmetic"]


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": (\S+)\.md$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(listed) == sorted(PAGES)


def test_every_public_name_is_in_the_reference():
    names = re.findall(r"^::: jmudsc\.(\w+)$", PAGES["reference"], re.M)
    submodules = {"adapters", "experiments", "landscape", "recipes"}
    assert sorted(names) == sorted(set(jmudsc.__all__) - submodules)


def test_the_folders_of_the_readme_are_those_there_are_in_the_order_of_their_use():
    readme = (ROOT / "README.md").read_text()
    layout = (ROOT / "tests" / "test_layout.py").read_text()
    table = re.search(r"^MAY_IMPORT = (\{.*?^\})", layout, re.M | re.S)
    folders = [name.replace(".", "/") for name in eval(table.group(1))]
    assert re.findall(r"^\| `([\w/]+)/` \|", readme, re.M) == folders
