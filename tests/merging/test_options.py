import dataclasses
import inspect
import json
import math
import re

import numpy as np
import pytest

from jmudsc import merge, METHODS
from jmudsc.merging.option_values import as_tuple, quoted
from jmudsc.merging.options import (
    dumped,
    MergeOptions,
    OPTIONS,
    Outcome,
    recorded,
)

# What `merge` takes that decides nothing, or is what is merged.
OTHERS = {
    "apply_fn",
    "models",
    "batches",
    "key",
    "spec",
    "budget",
    "journal",
    "progress",
}
OUTCOME = Outcome((0.5, 0.5), 0.3)


def fails(options, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        options.checked("merge")


def test_the_options_are_the_keywords_of_merge_with_their_defaults():
    taken = inspect.signature(merge).parameters
    defaults = {
        name: parameter.default
        for name, parameter in taken.items()
        if name not in OTHERS
    }
    fields = {each.name: each.default for each in dataclasses.fields(MergeOptions)}
    assert defaults == fields


def test_every_option_says_in_a_line_what_it_decides():
    for option in OPTIONS.values():
        assert 10 < len(option.says) < 80
        assert "\n" not in option.says


def test_several_things_become_a_tuple_and_one_text_is_one_of_them():
    assert as_tuple("a/*") == as_tuple(["a/*"]) == as_tuple(iter(["a/*"])) == ("a/*",)
    assert as_tuple(np.array([1, 2])) == (1, 2)
    assert as_tuple(None) is None
    hash(MergeOptions(frozen=as_tuple("a/*")))


def test_defaults_are_right_and_are_not_dumped():
    assert MergeOptions().checked("merge") == MergeOptions()
    assert dumped(MergeOptions()) == {"method": "mudsc-zip", "alpha": 0.5}


EXAMPLES = {
    "method": "weight-align",
    "alpha": 0.25,
    "held_out": 0.2,
    "weights": [1.0, 3.0],
    "frozen": ["a/*"],
    "separate": ["b/*"],
    "alike": {"ema/*": "params/*"},
    "reference": "mean",
    "refit": "least-squares",
    "ridge": 0.5,
    "target": "ensemble",
    "only": ["c/*"],
    "start": 1,
    "repair": "rescale",
}
# What only method "best" has.
TRIED = {"method": "best", "among": ["mudsc-align", "average + refit"], "alpha": 0.5}


def test_what_is_dumped_is_read_back():
    named = {n for n, option in OPTIONS.items() if option.in_recipe == "value"}
    assert named == EXAMPLES.keys() | TRIED.keys()
    for example in (EXAMPLES, TRIED):
        read = {name: OPTIONS[name].read(value) for name, value in example.items()}
        options = MergeOptions(**read).checked("recipe")
        assert dumped(options) == example
        assert json.loads(json.dumps(dumped(options))) == example


def test_the_penalty_is_dumped_and_recorded_with_a_refit_only():
    assert "ridge" not in dumped(MergeOptions(ridge=0.5))
    assert "ridge" not in recorded(MergeOptions(ridge=0.5), OUTCOME)
    assert dumped(MergeOptions(refit="least-squares"))["ridge"] == 0.01
    options = MergeOptions(refit="least-squares")
    assert recorded(options, OUTCOME)["ridge"] == 0.01


def test_the_record_of_defaults_is_short():
    assert recorded(MergeOptions(), OUTCOME) == {
        "method": "mudsc-zip",
        "alpha": 0.3,
        "weights": [0.5, 0.5],
    }


def test_the_record_of_all_options_is_plain():
    options = MergeOptions(
        method="mudsc-align",
        alpha="search",
        score=len,
        weights=(1.0, 1.0, 2.0),
        check=False,
        alphas=(0.1, 1.0),
        frozen=("a/*",),
        separate=("b/*",),
        alike=(("ema/*", "params/*"),),
        reference="mean",
        refit="least-squares",
        ridge=0.1,
        owners=(0, 1, 1, 2),
        repair="rescale",
    )
    outcome = Outcome((0.25, 0.25, 0.5), 0.1, ((0.1, 2.0), (1.0, 1.0)))
    found = recorded(options.checked("merge"), outcome)
    expected = {
        "method": "mudsc-align",
        "alpha": 0.1,
        "weights": [0.25, 0.25, 0.5],
        "checked": False,
        "balance": "search",
        "scores": {"0.1": 2.0, "1": 1.0},
        "frozen": ["a/*"],
        "separate": ["b/*"],
        "alike": {"ema/*": "params/*"},
        "reference": "mean",
        "refit": "least-squares",
        "ridge": 0.1,
        "batches per model": [1, 2, 1],
        "repair": "rescale",
    }
    assert found == expected
    assert list(found) == list(expected)
    assert json.loads(json.dumps(found)) == expected


def test_the_reference_is_recorded_where_there_are_more_than_two_models():
    options = MergeOptions()
    assert "reference" not in recorded(options, OUTCOME)
    assert recorded(options, Outcome((0.2, 0.4, 0.4), 0.5))["reference"] == "first"


WRONG = {
    "update_fn": (
        True,
        "expected a function, got True. Pass the function itself.",
    ),
    "score": (
        0.5,
        "expected a function, got 0.5. Pass the function itself.",
    ),
    "alike": (
        {"ema/*": "params", "step": "*"},
        'expected as many * on both sides, got others: "ema/*" has 1 and "params" 0, '
        '"step" has 0 and "*" 1. Each * stands for the same text on both.',
    ),
    "method": (
        "mudsc-zap",
        f'expected one of {", ".join(METHODS)}, best, got "mudsc-zap"; did you mean '
        '"mudsc-zip"?',
    ),
    "among": (
        ["mudsc-zip", "zip"],
        'expected methods, each once, with repairs as in "mudsc-zip + refit". There is '
        f'no method "zip". Use one of {", ".join(METHODS)}.',
    ),
    "alpha": (
        1.5,
        'expected a number in [0, 1], "search" or "auto", got 1.5. It is the '
        "share of the weight similarity.",
    ),
    "weights": (
        (0.0, 0.0),
        "expected one number of at least 0 for each model, not all of them "
        "0, got [0.0, 0.0]. Leave them out for equal shares.",
    ),
    "check": ("no", 'expected True or False, got "no".'),
    "alphas": (
        (0.5, 2.0),
        "expected one or more numbers in [0, 1], got [0.5, 2.0]. Leave them out "
        "for 0, 0.1, ..., 1.",
    ),
    "frozen": (
        ["a/*", 3],
        "expected a list of patterns of labels or leaves, got ['a/*', 3]. Put "
        "each pattern in quotes.",
    ),
    "separate": (
        [""],
        "expected a list of patterns of labels or leaves, got ['']. Put "
        "each pattern in quotes.",
    ),
    "reference": (
        "last",
        'expected one of first, mean, universe, got "last".',
    ),
    "refit": (
        "least-square",
        'expected one of least-squares, got "least-square"; did you mean '
        '"least-squares"?',
    ),
    "ridge": (
        0.0,
        "expected a finite number above 0, got 0.0. Try 0.01.",
    ),
    "held_out": (
        1.0,
        "expected a number of at least 0 and below 1, got 1.0. Pass 0 to judge a merge "
        "on what it was made from, None not to judge it.",
    ),
    "target": (
        "owners",
        'expected one of owner, sureness, ensemble, got "owners"; did you mean '
        '"owner"?',
    ),
    "sample_weight": (
        2.0,
        "expected a function, got 2.0. Pass the function itself.",
    ),
    "only": (
        [""],
        "expected a list of patterns of labels or leaves, got ['']. Put "
        "each pattern in quotes.",
    ),
    "start": (
        -1,
        'expected "merge" or the number of a model, got -1. Count models from 0.',
    ),
    "repair": (
        "pool",
        'expected one of rescale, pooled, got "pool"; did you mean "pooled"?',
    ),
}


@pytest.mark.parametrize("value", [["ema/*"], {"ema/*": None}, "ema/*", {"": ""}])
def test_what_is_no_mapping_of_patterns_is_refused(value):
    sentence = (
        "expected a mapping of patterns of leaves to those of the leaves that they "
        f'move like, got {quoted(value)}. Write them as {{"ema/*": "params/*"}}.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        OPTIONS["alike"].read(value)


def test_a_value_that_is_no_text_is_told_that_a_name_is_expected():
    sentence = "expected one of least-squares, got True. Write a name."
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        OPTIONS["refit"].read(True)


def test_long_values_are_cut():
    assert quoted("x" * 201) == f'"{"x" * 100}... (201 characters)"'
    assert quoted("x" * 200) == f'"{"x" * 200}"'
    assert quoted([1] * 100) == f"[{'1, ' * 33}... (300 characters)"
    assert quoted(10**400) == f"1{'0' * 99}... (401 characters)"
    assert quoted([10**5000]) == "an object of type list that is too long to write"


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_with_an_option_is_said(name):
    value, sentence = WRONG[name]
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        OPTIONS[name].read(value)


def test_the_caller_and_the_option_are_named():
    _, sentence = WRONG["reference"]
    fails(MergeOptions(reference="last"), f"merge: reference: {sentence}")


def test_every_option_with_a_reader_has_an_example_of_a_wrong_value():
    assert WRONG.keys() == {n for n, option in OPTIONS.items() if option.read}


def test_all_wrong_options_are_in_one_error():
    wrong = ("method", "alpha", "weights", "alphas", "reference", "refit", "ridge")
    options = MergeOptions(**{name: WRONG[name][0] for name in wrong})
    lines = [f"  {name}: {WRONG[name][1]}" for name in wrong]
    fails(options, "\n".join(["merge: 7 options are wrong:", *lines]))


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 10**400, True, "much", None, [0.5]]
)
def test_no_number_is_no_number(value):
    for name in ("alpha", "ridge"):
        with pytest.raises(ValueError, match=r"^expected"):
            OPTIONS[name].read(value)


def test_numbers_of_numpy_are_numbers():
    MergeOptions(
        alpha=np.float64(0.5), ridge=np.float64(1.0), weights=(np.float64(1.0),)
    ).checked("merge")


CLASHES = [
    (
        MergeOptions(alpha="search"),
        'alpha: expected a score with "search", got none. Pass score, a function of '
        'variables that is larger for better ones, or alpha="auto", which needs none.',
    ),
    (
        MergeOptions(alpha="auto", method="weight-zip"),
        "alpha: expected a method with a balance to choose, got weight-zip. Use "
        "mudsc-align or mudsc-zip, or leave alpha out.",
    ),
    (
        MergeOptions(sample_weight=len),
        "sample_weight: expected a refit, which alone uses it, got none. Pass "
        'refit="least-squares", or leave sample_weight out.',
    ),
    (
        MergeOptions(method="best", start=1),
        "start: expected a method that leaves a parent what it is, got best. Use "
        "average, or one that aligns.",
    ),
    (
        MergeOptions(repair="pooled", refit="least-squares"),
        'repair: expected "pooled" alone, since it sets running statistics itself, got '
        "refit too. Leave out all but one.",
    ),
    (
        MergeOptions(repair="pooled", update_fn=lambda variables, batch: variables),
        'repair: expected "pooled" alone, since it sets running statistics itself, got '
        "update_fn too. Leave out all but one.",
    ),
]


@pytest.mark.parametrize(("options", "sentence"), CLASHES)
def test_options_that_cannot_go_together_are_refused(options, sentence):
    fails(options, f"merge: {sentence}")
