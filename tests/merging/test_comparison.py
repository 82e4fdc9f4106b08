"""Several merges are compared in one table, on statistics that they share."""

import functools
import re

import jax
import pytest
import tiny

from jmudsc import merge, permute, random_permutations
from jmudsc.merging.comparison import Comparison
from jmudsc.merging.contenders import contenders_to_try
from jmudsc.merging.options import MergeOptions
from jmudsc.merging.report import report

NET = tiny.MLP
SPEC = tiny.spec_of("mlp")
BATCHES = [tiny.batch(NET, seed, 32) for seed in range(6)]
OUT = next(path for path in reversed(NET.shapes) if path.endswith("kernel"))
WAYS = {
    "average": {"method": "average"},
    "weight-align": {"method": "weight-align"},
    "mudsc-zip + refit": {"method": "mudsc-zip", "refit": "least-squares"},
    "mudsc-align + rescale": {"method": "mudsc-align", "repair": "rescale"},
}
WAYS_TOO = list(WAYS)[1:]  # the plain average is a row of its own


@functools.cache
def parents():
    return [tiny.variables(NET, seed) for seed in range(2)]


def merged(models=None, **options):
    options = {"key": jax.random.key(0), "held_out": 0.4, **options}
    return merge(NET.apply_fn, models or parents(), BATCHES, **options)


@functools.cache
def compared():
    return merged(method="best", among=tuple(WAYS))


@pytest.mark.parametrize("name", WAYS)
def test_a_row_is_what_the_method_and_its_repairs_give_alone(name):
    alone = merged(**WAYS[name]).verdict
    assert compared().comparison.verdicts[name] == alone
    assert compared().comparison.networks[name] == alone.networks["merged"]


def test_parents_average_and_ensemble_are_rows_too():
    alone = merged(method="weight-align").verdict.networks
    found = compared().comparison.networks
    assert list(found) == ["parent 0", "parent 1", "average", "ensemble", *WAYS_TOO]
    for name in ("parent 0", "parent 1", "average", "ensemble"):
        assert found[name] == alone[name]


def test_statistics_are_gathered_once_for_all(monkeypatch):
    import jmudsc.merging.merge as module

    calls = []
    counted = lambda *given, **options: calls.append(1) or collect(*given, **options)
    collect = module.collect
    monkeypatch.setattr(module, "collect", counted)
    merged(method="best", among=("mudsc-zip", "mudsc-align", "activation-zip"))
    assert calls == [1]


def test_no_statistics_are_gathered_where_no_method_reads_them(monkeypatch):
    import jmudsc.merging.merge as module

    monkeypatch.setattr(module, "collect", None)
    found = merged(method="best", among=("average", "weight-align")).comparison
    assert list(found.verdicts) == ["average", "weight-align"]


def test_repairs_are_those_that_are_named_whatever_the_options_say():
    options = {"repair": "rescale", "refit": "least-squares"}
    found = merged(method="best", among=("average",), **options).comparison
    assert found.verdicts["average"] == merged(method="average").verdict


def test_what_is_best_is_first_in_what_decides_and_is_returned():
    result = compared()
    found = result.comparison
    names = ["parent 0", "parent 1", *WAYS]
    cosines = {name: found.networks[name].cosine for name in names}
    assert found.best == max(cosines, key=cosines.__getitem__)
    assert result.recipe["chosen"] == found.best
    assert result.recipe["among"] == list(WAYS)
    assert found.sentence.startswith(
        f"On 64 held-out samples the best of 4 merges and all parents is {found.best} "
        f"(cosine {cosines[found.best]:.3f})"
    )


def test_a_score_decides_and_has_a_column():
    wanted = float(parents()[1][OUT].sum())
    score = lambda variables: -abs(float(variables[OUT].sum()) - wanted)
    found = merged(method="best", among=("average",), score=score).comparison
    assert found.best == "parent 1"
    assert found.as_good == ()
    lines = found.table.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:4]] == [
        "network",
        "score",
        "cosine",
    ]
    average = score(merged(method="average").variables)
    assert f"| {average:.3f} |" in next(x for x in lines if x.startswith("| average"))


def test_what_is_as_good_by_all_that_is_known_is_named():
    model = parents()[0]
    other = permute(SPEC, model, random_permutations(SPEC, jax.random.key(1)))
    among = ("average", "weight-align", "mudsc-align")
    found = merged([model, other], method="best", among=among).comparison
    assert {found.best, *found.as_good} >= {"weight-align", "mudsc-align"}
    assert "average" not in found.as_good
    assert "within one standard error of it" in found.sentence


def test_the_table_fits_a_terminal_and_is_in_the_report():
    found = merged(method="best")
    assert max(map(len, found.comparison.table.splitlines())) <= 80
    assert str(found.comparison) in report(found)
    assert "What was tried" not in report(merged(method="average"))


def test_other_methods_have_no_comparison():
    assert merged(method="average").comparison is None


def test_a_network_whose_outputs_are_not_finite_is_a_row_of_dashes():
    verdict = compared().comparison.verdicts["average"]
    broken = {**verdict.networks, "merged": None}
    found = Comparison(
        "parent 0",
        (),
        {
            "average": verdict.__class__(
                "worse", 0, -2.0, 0.0, broken, "cosine", 64, 2, True
            )
        },
    )
    row = next(x for x in found.table.splitlines() if x.startswith("| average"))
    assert [cell.strip() for cell in row.split("|")[2:-3]] == ["-"] * 4


def test_names_are_read_with_any_spaces():
    assert contenders_to_try(["average", "mudsc-zip+refit + rescale"]) == (
        "average",
        "mudsc-zip + refit + rescale",
    )
    assert contenders_to_try([]) == ()


@pytest.mark.parametrize(
    ("among", "expected"),
    [
        (
            ["mudsc-zap", "average + refitt", "average + smile"],
            'expected methods, each once, with repairs as in "mudsc-zip + refit". '
            'There is no method "mudsc-zap"; did you mean "mudsc-zip"? There is no '
            'repair "refitt"; did you mean "refit"? There is no repair "smile". Use '
            "one of refit, least-squares, rescale, pooled.",
        ),
        (
            ["average", "average"],
            'expected methods, each once, with repairs as in "mudsc-zip + refit". '
            '"average" stands there twice.',
        ),
        (
            ["average + rescale + pooled"],
            'expected methods, each once, with repairs as in "mudsc-zip + refit". '
            '"average + rescale + pooled" has two repairs of one kind. Leave out one '
            "of them.",
        ),
        (
            "average",
            'expected a list of methods, with repairs as in "mudsc-zip + refit", got '
            '"average". Put each in quotes.',
        ),
    ],
)
def test_names_that_are_wrong_are_said(among, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        contenders_to_try(among)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"among": ("average",)},
            'merge: among: expected method="best", which alone tries several merges, '
            'got "mudsc-zip". Pass method="best", or leave among out.',
        ),
        (
            {"method": "best", "among": ("average + refit + pooled",)},
            'merge: among: "average + refit + pooled" cannot be made. repair: expected '
            '"pooled" alone, since it sets running statistics itself, got refit too. '
            "Leave out all but one.",
        ),
    ],
)
def test_merges_that_cannot_be_made_are_refused_before_any_is(options, expected):
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        MergeOptions(**options).checked("merge")


def test_a_zip_that_heads_cannot_follow_is_refused_if_it_is_named():
    among, options = ("average", "mudsc-zip"), {"separate": "a/bias"}
    with pytest.raises(ValueError, match="cannot follow a zip") as named:
        merged(method="best", among=among, **options)
    with pytest.raises(ValueError, match="cannot follow a zip") as alone:
        merged(method="mudsc-zip", **options)
    assert str(named.value) == str(alone.value)
