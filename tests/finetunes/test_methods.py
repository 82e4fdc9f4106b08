"""Every method is held to the laws that hold for all: a row here for each row there."""

import finetuned
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

import jmudsc
from jmudsc.checkpoints.save import save_variables
from jmudsc.finetunes.merge_finetunes import merge_finetunes
from jmudsc.finetunes.methods import FINETUNE_METHODS, method_of

BASE = tiny.variables(tiny.MLP, 0)
MODELS = finetuned.fine_tunes(BASE)
ROWS = sorted(FINETUNE_METHODS)
WITH_BASE = [name for name in ROWS if FINETUNE_METHODS[name].base != "unused"]
RANDOM = {name for name in ROWS if FINETUNE_METHODS[name].is_random}
LEAFWISE = [
    name
    for name in ROWS
    if not FINETUNE_METHODS[name].needs_data and not FINETUNE_METHODS[name].runs
]
OPTIONS = {"ties": [{}, {"scope": "tree"}], "wudi": [{}, {"solver": "exact"}]}
CASES = [(name, options) for name in ROWS for options in OPTIONS.get(name, [{}])]
IDS = [f"{name}-{'-'.join(options.values())}".rstrip("-") for name, options in CASES]
every = pytest.mark.parametrize(("name", "options"), CASES, ids=IDS)


def merged(name, models=MODELS, base=BASE, **options):
    return finetuned.merged(models, base, name, **options)


def close(found, expected, tolerance=2e-5):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        size = np.abs(np.asarray(leaf, float)).max()
        difference = np.abs(np.asarray(found[path], float) - np.asarray(leaf, float))
        assert difference.max() <= tolerance * size, path


def same_bits(found, expected):
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        got, leaf = np.asarray(found[path]), np.asarray(leaf)
        assert got.dtype == leaf.dtype, path
        assert got.tobytes() == leaf.tobytes(), path


@every
def test_a_leaf_that_all_have_alike_comes_back_bit_for_bit(name, options):
    leaf = BASE["b/kernel"].copy()
    leaf[0, 0] = -0.0
    base = BASE | {"b/kernel": leaf}
    models = [model | {"b/kernel": leaf.copy()} for model in MODELS]
    if FINETUNE_METHODS[name].runs == "layers":
        pytest.skip("fits features, which other layers changed")
    found = merged(name, models, base, **options)
    assert np.asarray(found["b/kernel"]).tobytes() == leaf.tobytes()
    assert all(np.isfinite(x).all() for x in found.values())


@every
def test_the_dtype_is_that_of_the_base_and_rounded_once(name, options):
    coarse = lambda tree: {k: jnp.asarray(v, jnp.bfloat16) for k, v in tree.items()}
    wide = lambda tree: {k: jnp.asarray(v, jnp.float32) for k, v in tree.items()}
    base, models = coarse(BASE), list(map(coarse, MODELS))
    if FINETUNE_METHODS[name].needs_data or FINETUNE_METHODS[name].runs:
        found = merged(name, models, wide(base), **options)
        assert all(leaf.dtype == jnp.float32 for leaf in found.values())
        return
    found = merged(name, models, base, **options)
    exact = merged(name, list(map(wide, models)), wide(base), **options)
    same_bits(found, coarse(exact))


@pytest.mark.parametrize("name", WITH_BASE)
def test_nothing_added_is_the_base_bit_for_bit(name):
    if FINETUNE_METHODS[name].lambda_ is None or name == "featcal":
        pytest.skip("has no scale of what comes out")
    same_bits(merged(name, lambda_=0.0), BASE)


@every
def test_the_order_of_the_models_makes_no_difference(name, options):
    if name in RANDOM | {"window", "slerp"}:
        pytest.skip("tells its models apart")
    models = finetuned.fine_tunes(BASE, 2 if name == "nuslerp" else 3)
    order = [1, 0] if name == "nuslerp" else [2, 0, 1]
    needs = finetuned.needs(name, len(models))
    changed = needs | {}
    if "owners" in needs:
        changed["owners"] = [order.index(owner) for owner in needs["owners"]]
    found, again = (
        merge_finetunes(given, BASE, name, **options, **extra).variables
        for given, extra in ((models, needs), ([models[n] for n in order], changed))
    )
    close(found, again, 1e-4)


@every
def test_units_in_another_order_in_all_models_come_out_in_that_order(name, options):
    if name in RANDOM:
        pytest.skip("draws by place")
    spec = tiny.spec_of("mlp")
    perms = jmudsc.random_permutations(spec, jax.random.key(5))
    moved = lambda tree: jmudsc.permute(spec, tree, perms)
    found = merged(name, list(map(moved, MODELS)), moved(BASE), **options)
    close(found, moved(merged(name, **options)), 1e-4)


def layers(tree):
    """Return a network of one stacked leaf as one of a leaf for each layer."""
    apart = {
        f"layer_{number}/{leaf}": tree[f"layers/{leaf}"][number]
        for number in range(3)
        for leaf in ("kernel", "bias")
    }
    return apart | {"out/kernel": tree["out/kernel"]}


def scanned(variables, x):
    def step(h, layer):
        return jnp.tanh(h @ layer[0] + layer[1][None]), None

    stacks = variables["layers/kernel"], variables["layers/bias"]
    return jax.lax.scan(step, x, stacks)[0] @ variables["out/kernel"]


def unrolled(variables, x):
    for number in range(3):
        layer = [variables[f"layer_{number}/{leaf}"] for leaf in ("kernel", "bias")]
        x = jnp.tanh(x @ layer[0] + layer[1][None])
    return x @ variables["out/kernel"]


SCANNED = tiny.Tiny(
    scanned,
    {"layers/kernel": (3, 6, 6), "layers/bias": (3, 6), "out/kernel": (6, 4)},
    (6,),
)


@every
def test_stacked_layers_come_out_as_the_same_layers_apart(name, options):
    if name in RANDOM or FINETUNE_METHODS[name].runs == "layers":
        pytest.skip("draws by leaf, or leaves what is in a loop as it is")
    base = tiny.variables(SCANNED, 0)
    models = finetuned.fine_tunes(base)
    extra = finetuned.needs(name, 2, SCANNED) | {"batches": finetuned.batches(SCANNED)}
    extra |= (
        {"score": lambda v: -float(np.abs(v["out/kernel"]).sum())}
        if ("score" in extra)
        else {}
    )
    deep = name in WITH_BASE and FINETUNE_METHODS[name].lambda_ is not None
    extra |= {"lambda_": [0.5, 1.5, 1.0]} if deep else {}
    found = merge_finetunes(
        models, base, name, **(extra | {"apply_fn": scanned}), **options
    ).variables
    expected = merge_finetunes(
        list(map(layers, models)),
        layers(base),
        name,
        **(extra | {"apply_fn": unrolled}),
        **options,
    ).variables
    if FINETUNE_METHODS[name].needs_data:  # what a loop computes is rounded otherwise
        close(layers(found), expected)
    else:
        same_bits(layers(found), expected)


@pytest.mark.parametrize(
    ("name", "options"),
    [case for case in CASES if case[0] in LEAFWISE],
    ids=[i for i, case in zip(IDS, CASES, strict=True) if case[0] in LEAFWISE],
)
def test_from_disk_to_disk_the_bits_are_the_same(name, options, tmp_path):
    trees = {"base": BASE, "m0": MODELS[0], "m1": MODELS[1]}
    for file, tree in trees.items():
        save_variables(tmp_path / f"{file}.safetensors", tree)
    base, *models = (
        jmudsc.load(tmp_path / f"{file}.safetensors", separator="", lazy=True)
        for file in trees
    )
    result = merge_finetunes(models, base, name, **finetuned.needs(name, 2), **options)
    jmudsc.save(tmp_path / "merged.npz", result)
    found = jmudsc.load(tmp_path / "merged.npz", separator="")
    same_bits(found, merged(name, **options))


@every
def test_whole_numbers_are_the_base_s_and_the_result_says_so(name, options):
    if FINETUNE_METHODS[name].needs_data:
        pytest.skip("the network has none")
    base = BASE | {"step": np.int32(7), "on": np.array([True, False])}
    models = [
        m | {"step": np.int32(n), "on": ~base["on"]} for n, m in enumerate(MODELS)
    ]
    extra = finetuned.needs(name, 2)
    result = merge_finetunes(models, base, name, **extra, **options)
    assert result.variables["step"] == 7
    assert result.variables["on"].tolist() == [True, False]
    assert result.changes["step"] == (
        "taken from the base: it holds no floating-point numbers"
    )


@every
def test_other_models_give_another_result(name, options):
    models = [MODELS[0], finetuned.fine_tunes(BASE, 1, seed=1, size=0.3)[0]]
    if name == "greedy_soup":
        pytest.skip("may keep one model")
    with pytest.raises(AssertionError):
        close(merged(name, models, **options), merged(name, **options), 1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_every_option_has_a_default_that_it_may_be(name):
    row = FINETUNE_METHODS[name]
    assert row.about.endswith(".")
    for option in row.options:
        assert option.kind.holds(option.default), option.name
    assert all(method_of(alias) is row for alias in (name, *row.aliases))
    assert (row.rule is None) == (row.runs == "greedy")
    assert row.base != "unused" or row.lambda_ is None
