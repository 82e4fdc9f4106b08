import dataclasses
import re

import pytest

from jmudsc import FINETUNE_METHODS, METHODS
from jmudsc.finetunes.options import COMMON
from jmudsc.merging.options import MergeOptions, OPTIONS
from jmudsc.recipes.dump import dump_recipe
from jmudsc.recipes.families import FINETUNED, MATCHED
from jmudsc.recipes.import_path import ImportPath
from jmudsc.recipes.reader import keys_of, parse_recipe, read_recipe
from jmudsc.recipes.schema import Recipe
from jmudsc.recipes.source import Source

GOOD = {
    "models": ["runs/a", {"path": "runs/b", "subtree": ["params", "batch_stats"]}],
    "apply_fn": "my_model:apply_fn",
    "batches": {"factory": "my_data:calibration", "size": 100},
    "output": "merged",
}


def refused(content, *mistakes):
    with pytest.raises(ValueError, match=r"^recipe: correct ") as error:
        parse_recipe(content)
    assert str(error.value).split("\n  ")[1:] == list(mistakes)
    return str(error.value)


def test_a_recipe_is_read_with_its_defaults():
    assert parse_recipe(GOOD) == Recipe(
        models=(Source("runs/a"), Source("runs/b", ("params", "batch_stats"))),
        apply_fn=ImportPath("my_model:apply_fn"),
        batches=ImportPath("my_data:calibration", {"size": 100}),
        output="merged",
        options=MergeOptions(method="mudsc-zip", alpha=0.5),
        functions={},
        seed=0,
        spec=None,
        losses=None,
    )


def test_options_are_read_into_the_options_of_merge():
    options = {"method": "average", "frozen": ["P_0"], "repair": "rescale"}
    recipe = parse_recipe(GOOD | options | {"update_fn": "m:f", "seed": 3})
    assert recipe.options == MergeOptions(
        method="average", frozen=("P_0",), repair="rescale"
    )
    assert recipe.functions == {"update_fn": ImportPath("m:f")}


def test_every_option_that_a_recipe_has_is_a_key_of_it():
    own = {field.name for field in dataclasses.fields(Recipe)}
    own -= {"options", "functions", "folder", "mergekit"}
    of_finetunes = {"base", "dtype", "shard_size", "space", "tokenizer"}
    options = {name for name, option in OPTIONS.items() if option.in_recipe}
    assert set(keys_of(MATCHED)) == own - of_finetunes | options
    shared = {name for name, option in COMMON.items() if option.in_recipe}
    named = {option for row in FINETUNE_METHODS.values() for option in row.by_name}
    theirs = {"method", "lambda_", "lambda", "int8_mask"}
    assert set(keys_of(FINETUNED)) == own - {"spec"} | shared | named | theirs


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"method": "weight-align", "alpha": 1, "weights": [1, 3], "seed": 7},
        {"update_fn": {"factory": "my_model:update_fn"}},
        {"spec": "spec.txt", "frozen": ["P_0", "params/stem/*"]},
        {"alpha": "search", "score": "my_model:score", "reference": "universe"},
        {"alpha": "auto", "separate": ["params/head/*"]},
        {"refit": "least-squares", "ridge": 0.1, "repair": "rescale"},
        {"repair": "pooled"},
        {"losses": {"left": "my_data:loss", "right": {"factory": "m:f", "n": 1}}},
        {
            "models": [
                "a.npz",
                {"path": "b", "rename": {"x/*": "*", "n": None}, "separator": "."},
            ],
        },
    ],
)
def test_a_recipe_written_is_read_back(more, tmp_path):
    recipe = parse_recipe(GOOD | more)
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert read_recipe(path) == recipe
    assert read_recipe(path).folder == tmp_path


def test_all_that_is_wrong_is_said_at_once_with_the_nearest_right_name():
    content = {
        "model": ["runs/a", "runs/b"],
        "aply_fn": "m:f",
        "batches": "my_data",
        "method": "mudsc-zp",
        "alpha": 1.5,
        "reference": "last",
        "weights": [-1, 1],
        "seed": True,
        "spec": ["spec.txt"],
        "frozen": "P_0",
        "output": 3,
    }
    said = refused(
        content,
        'model: there is no such key; did you mean "models"?',
        'aply_fn: there is no such key; did you mean "apply_fn"?',
        'batches: expected "module:name" or {factory: "module:name", ...}, got '
        '"my_data". Write the module, a colon and the name in it.',
        "method: expected one of "
        f'{", ".join((*METHODS, *FINETUNE_METHODS))}, got "mudsc-zp"; did you mean '
        '"mudsc-zip"?',
        'alpha: expected a number in [0, 1], "search" or "auto", got 1.5. It is the '
        "share of the weight similarity.",
        'reference: expected one of first, mean, universe, got "last".',
        "weights: expected one number of at least 0 for each model, not all of them 0, "
        "got [-1, 1]. Leave them out for equal shares.",
        "seed: expected a whole number in [0, 2**32), got True. Leave it out for 0.",
        "spec: expected a path, got ['spec.txt']. Put it in quotes.",
        'frozen: expected a list of patterns of labels or leaves, got "P_0". Put each '
        "pattern in quotes.",
        "output: expected a path, got 3. Put it in quotes.",
        "models: this key is missing.",
        "apply_fn: this key is missing.",
    )
    assert said.startswith("recipe: correct 13 mistakes:\n")


def test_there_must_be_a_weight_for_every_model():
    said = refused(
        GOOD | {"weights": [1, 1, 1]},
        "weights: expected 2 values, one for each model, got 3. Leave them out for "
        "equal shares.",
    )
    assert said.startswith("recipe: correct 1 mistake:\n")


OWN = [
    {"path": "a", "batches": "my_data:low"},
    {"path": "b", "batches": {"factory": "my_data:high", "size": 9}},
]
SHARED = {"path": "c"}


def test_every_model_may_have_batches_of_its_own(tmp_path):
    content = {k: v for k, v in GOOD.items() if k != "batches"} | {"models": OWN}
    recipe = parse_recipe(content)
    assert recipe.batches is None
    assert recipe.models[1].batches == ImportPath("my_data:high", {"size": 9})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("models", "shared", "problem"),
    [
        (
            OWN,
            True,
            "batches: expected them in one place, got them here and with 2 models. "
            "Leave out one of the two.",
        ),
        (
            [SHARED] * 2,
            False,
            "batches: expected batches, got none. Name them here, or with each of the "
            "models.",
        ),
        (
            [*OWN, SHARED],
            False,
            "batches: expected them with every model, got none with model 2. Name them "
            "with all models, or once for all.",
        ),
        (
            [OWN[0], SHARED, SHARED],
            False,
            "batches: expected them with every model, got none with models 1, 2. Name "
            "them with all models, or once for all.",
        ),
        (
            [{"path": "a", "batches": "low"}, SHARED],
            True,
            'models: entry 0: batches: expected "module:name" or {factory: '
            '"module:name", ...}, got "low". Write the module, a colon and the name in '
            "it.",
        ),
    ],
)
def test_batches_must_be_in_one_place(models, shared, problem):
    content = {k: v for k, v in GOOD.items() if shared or k != "batches"}
    refused(content | {"models": models}, problem)


def test_listed_losses_are_named_as_tasks():
    recipe = parse_recipe(GOOD | {"losses": ["my_data:loss", {"factory": "m:f"}]})
    losses = {"task A": ImportPath("my_data:loss"), "task B": ImportPath("m:f", {})}
    assert recipe.losses == losses


@pytest.mark.parametrize(
    "losses", ["m:f", [], {}, {"sum": "m:f"}, {1: "m:f"}], ids=repr
)
def test_losses_of_no_tasks_are_refused(losses):
    shown = '"m:f"' if losses == "m:f" else repr(losses)
    refused(
        GOOD | {"losses": losses},
        "losses: expected a mapping of tasks to import paths, or a list of import "
        f'paths, got {shown}. A task may have any name but "sum".',
    )


def test_separate_networks_need_a_loss_for_each():
    refused(
        GOOD | {"losses": ["m:f"], "separate": ["head/*"]},
        "losses: expected 2 tasks, one for each model since leaves are separate, got "
        "1. Give every model its task.",
    )


def test_wrong_ways_to_finish_are_refused():
    refused(
        GOOD | {"refit": "lstsq", "ridge": 0, "repair": "poled"},
        'refit: expected one of least-squares, got "lstsq".',
        "ridge: expected a finite number above 0, got 0. Try 0.01.",
        'repair: expected one of rescale, pooled, got "poled"; did you mean "pooled"?',
    )


def test_what_is_no_mapping_is_refused():
    expected = (
        "recipe: expected a mapping of keys to values, got a list. Start with "
        '"models:".'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        parse_recipe([1])


def test_a_recipe_that_is_not_there_is_said_so(tmp_path):
    path = tmp_path / "recipe.yaml"
    expected = f"{path}: expected a recipe, got no such file. Check the path."
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(expected)}$"):
        read_recipe(path)


def test_what_is_no_yaml_is_said_so(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("models: [")
    expected = f"{path}: expected YAML, got a text that is none. Correct this:\n"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        read_recipe(path)
