import re

import pytest

from jmudsc.recipes.schema import (
    dump_recipe,
    parse_recipe,
    read_recipe,
    Recipe,
    Reference,
    resolve,
    Source,
)

GOOD = {
    "models": ["runs/a", {"path": "runs/b", "subtree": ["params", "batch_stats"]}],
    "apply_fn": "my_model:apply_fn",
    "batches": {"factory": "my_data:calibration", "size": 100},
    "output": "merged",
}


def refused(content, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        parse_recipe(content)


def test_a_recipe_is_read_with_its_defaults():
    assert parse_recipe(GOOD) == Recipe(
        models=(Source("runs/a"), Source("runs/b", ("params", "batch_stats"))),
        apply_fn=Reference("my_model:apply_fn"),
        batches=Reference("my_data:calibration", {"size": 100}),
        output="merged",
        update_fn=None,
        method="mudsc-zip",
        alpha=0.5,
        weights=None,
        seed=0,
        spec=None,
        frozen=(),
    )


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
    refused(
        content,
        "recipe: 13 things must be corrected:\n"
        '  "model" is no key; did you mean "models"?\n'
        '  "aply_fn" is no key; did you mean "apply_fn"?\n'
        '  "batches" is \'my_data\', it must be "module:name" or '
        '{factory: "module:name", ...}\n'
        '  "method" is \'mudsc-zp\'; did you mean "mudsc-zip"?; it must be one of '
        "average, weight-align, activation-align, weight-zip, activation-zip, "
        "mudsc-align, mudsc-zip\n"
        '  "alpha" is 1.5, it must be a number in [0, 1], or search or auto\n'
        "  \"reference\" is 'last'; it must be one of first, mean, universe\n"
        '  "weights" is [-1, 1], it must be a list of numbers >= 0, one per model, not '
        "all 0\n"
        '  "seed" is True, it must be a whole number in [0, 2**32)\n'
        "  \"spec\" is ['spec.txt'], it must be a path\n"
        "  \"frozen\" is 'P_0', it must be a list of label or leaf patterns\n"
        '  "output" is 3, it must be a path\n'
        '  "models" is missing\n'
        '  "apply_fn" is missing',
    )


@pytest.mark.parametrize(
    ("models", "problem"),
    [
        (
            ["runs/a"],
            "\"models\" is ['runs/a'], it must be a list of two or more models",
        ),
        ([{"path": "a"}, {}], '"models" must be corrected: entry 1 has no path'),
        (
            ["a", {"path": "b", "subtre": "params"}],
            '"models" must be corrected: entry 1 has the unknown key "subtre"; did you '
            'mean "subtree"?',
        ),
        (
            ["a", {"path": "b", "subtree": 3}],
            '"models" must be corrected: entry 1 has a subtree that is no name or list',
        ),
        (
            ["a", {"path": "b", "rename": {"a/*": "b"}, "separator": 1}],
            '"models" must be corrected: entry 1 has a rename that is wrong: "a/*" has '
            '1 "*" and "b" 0; entry 1 has a separator that is no text; "" is for none',
        ),
        (
            ["a", {"path": "b", "rename": ["a"]}],
            '"models" must be corrected: entry 1 has a rename that is no mapping of '
            "patterns to new paths, or null to leave out",
        ),
    ],
)
def test_wrong_models_are_refused(models, problem):
    refused(
        GOOD | {"models": models}, f"recipe: 1 things must be corrected:\n  {problem}"
    )


def test_there_must_be_a_weight_for_every_model():
    refused(
        GOOD | {"weights": [1, 1, 1]},
        'recipe: 1 things must be corrected:\n  "weights" has 3 values for 2 models',
    )


OWN = [
    {"path": "a", "batches": "my_data:low"},
    {"path": "b", "batches": {"factory": "my_data:high", "size": 9}},
]
SHARED = {"path": "c"}


def test_every_model_may_have_batches_of_its_own(tmp_path):
    content = {k: v for k, v in GOOD.items() if k != "batches"} | {"models": OWN}
    recipe = parse_recipe(content)
    assert recipe.batches is None
    assert recipe.models[1].batches == Reference("my_data:high", {"size": 9})
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    assert read_recipe(path) == recipe


@pytest.mark.parametrize(
    ("models", "shared", "problem"),
    [
        (OWN, True, '"batches" is given and models have batches too, only one can be'),
        ([SHARED] * 2, False, '"batches" is missing, here or for each of the models'),
        ([*OWN, SHARED], False, "the models 2 have no batches, the others do"),
        (
            [{"path": "a", "batches": "low"}, SHARED],
            True,
            "\"models\" must be corrected: entry 0 has batches: it is 'low', it must "
            'be "module:name" or {factory: "module:name", ...}',
        ),
    ],
)
def test_batches_must_be_in_one_place(models, shared, problem):
    content = {k: v for k, v in GOOD.items() if shared or k != "batches"}
    refused(
        content | {"models": models},
        f"recipe: 1 things must be corrected:\n  {problem}",
    )


def test_listed_losses_are_named_as_tasks():
    recipe = parse_recipe(GOOD | {"losses": ["my_data:loss", {"factory": "m:f"}]})
    losses = {"task A": Reference("my_data:loss"), "task B": Reference("m:f", {})}
    assert recipe.losses == losses


@pytest.mark.parametrize(
    "losses", ["m:f", [], {}, {"sum": "m:f"}, {1: "m:f"}], ids=repr
)
def test_losses_of_no_tasks_are_refused(losses):
    refused(
        GOOD | {"losses": losses},
        f'recipe: 1 things must be corrected:\n  "losses" is {losses!r}, it must be a '
        'mapping of names of tasks to references, or a list of references; "sum" is '
        "no name of a task",
    )


def test_separate_networks_need_a_loss_for_each():
    refused(
        GOOD | {"losses": ["m:f"], "separate": ["head/*"]},
        'recipe: 1 things must be corrected:\n  "losses" has 1 tasks for 2 models, '
        'with "separate" there must be one for each',
    )


def test_wrong_ways_to_finish_are_refused():
    refused(
        GOOD | {"refit": "lstsq", "ridge": 0, "repair": "poled"},
        "recipe: 3 things must be corrected:\n"
        "  \"refit\" is 'lstsq'; it must be one of least-squares\n"
        '  "ridge" is 0, it must be a number above 0\n'
        '  "repair" is \'poled\'; did you mean "pooled"?; it must be one of rescale, '
        "pooled",
    )


def test_what_is_no_mapping_is_refused():
    refused([1], "recipe: is a list, a mapping of keys to values is needed.")


def test_a_recipe_that_is_not_there_is_said_so(tmp_path):
    path = tmp_path / "recipe.yaml"
    expected = f"{path}: there is no such file, a recipe is needed."
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(expected)}$"):
        read_recipe(path)


def test_what_is_no_yaml_is_said_so(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("models: [")
    with pytest.raises(ValueError, match=re.escape(f"{path}: is not YAML, it must be")):
        read_recipe(path)


def test_references_are_imported_from_the_folder_of_the_recipe(tmp_path):
    (tmp_path / "my_model_of_test.py").write_text(
        "def make(size):\n    return [size]\n"
    )
    assert resolve(Reference("my_model_of_test:make", {"size": 3}), tmp_path) == [3]
    assert resolve(Reference("my_model_of_test:make"), tmp_path)(4) == [4]


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        (
            Reference("no_such_module_here:f"),
            'names the module "no_such_module_here", which is neither installed nor in '
            "{folder}; install it or correct the name",
        ),
        (
            Reference("jmudsc.experiments.demo:aply_fn"),
            'names "jmudsc.experiments.demo:aply_fn", but '
            'jmudsc.experiments.demo has no "aply_fn"; did you mean "apply_fn"?',
        ),
        (
            Reference("jmudsc.paths:listed", {"line": []}),
            'names "jmudsc.paths:listed", which cannot be called with line: missing a '
            "required argument: 'lines'",
        ),
    ],
)
def test_references_to_nothing_are_refused(reference, expected, tmp_path):
    expected = expected.format(folder=tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        resolve(reference, tmp_path)
