import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
from assignments import stay
from groups import draw, spec_of
from recorded import partition, read, rows

from jmudsc import align, Label, PermutationSpec, zip_units
from jmudsc.matching.match_options import MatchOptions
from jmudsc.matching.methods import TABLE
from jmudsc.matching.nested_labels import families, match_family

ALIGN, ZIP = (MatchOptions(TABLE[f"weight-{kind}"]) for kind in ("align", "zip"))


def between(spec, similarity, name, model, ours, theirs):
    """Cut the units of one set of parents of model 0 and one of another model."""
    shape = spec.row_shape(name)
    models = len(similarity) // int(np.prod(shape))
    grid = similarity.reshape(models, *shape, models, *shape)
    return grid[(0, *ours, slice(None), model, *theirs)].astype(float)


def best(spec, similarity, name, model, ours=(), theirs=()):
    """Try every permutation: return the largest sum and the rows that reach it."""
    units = range(spec.labels[name].size)
    own = np.zeros((len(units), len(units)))
    if name in similarity:
        own = between(spec, similarity[name], name, model, ours, theirs)
    inner = {
        (j, k): [
            (child, *best(spec, similarity, child, model, (*ours, j), (*theirs, k)))
            for child in spec.children(name)
        ]
        for j, k in itertools.product(units, units)
    }

    def reached(perm):
        pairs = list(enumerate(perm))
        return sum(own[p] + sum(total for _, total, _ in inner[p]) for p in pairs)

    perm = max(itertools.permutations(units), key=reached)
    found = {(name, ours): np.argsort(perm)}
    for pair in enumerate(perm):
        for _, _, rows_ in inner[pair]:
            found |= rows_
    return reached(perm), found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("without", [(), ("head",)])
@pytest.mark.parametrize(
    "labels",
    [
        {"head": (3,), "qk": (2, "head"), "v": (3, "head")},
        {"head": (2,), "group": (3, "head"), "unit": (2, "head", "group")},
        {"head": (4,), "unit": (1, "head")},
    ],
)
def test_groups_are_matched_as_well_as_by_trying_everything(labels, without, seed):
    spec, models = spec_of(**labels), 3
    similarity = draw(seed, spec, models, without)
    family = list(labels)
    found = match_family(spec, family, similarity, stay(spec, models), ALIGN)
    for model in range(1, models):
        _, expected = best(spec, similarity, "head", model)
        for (name, merged), row in expected.items():
            np.testing.assert_array_equal(found[name][(model, *merged)], row)
    for name in family:  # model 0 stays
        np.testing.assert_array_equal(found[name][0], stay(spec, 1)[name][0])


@pytest.mark.parametrize("models", [2, 3])
def test_groups_are_paired_and_then_zipped_one_by_one(models):
    spec = spec_of(head=(3,), unit=(4, "head"))
    similarity = draw(0, spec, models)
    start = stay(spec, models)
    family = ["head", "unit"]
    found = match_family(
        spec, family, similarity, start, MatchOptions(ZIP.method, a=0.3, b=0.5)
    )
    paired = match_family(spec, family, similarity, start, ALIGN)
    np.testing.assert_array_equal(found["head"], paired["head"])
    shape = (models, 3, 4)
    grid = similarity["unit"].reshape(shape + shape)
    for merged in range(3):
        owners = [int(row.tolist().index(merged)) for row in found["head"]]
        rows_ = [(model, owner) for model, owner in enumerate(owners)]
        block = np.block([[grid[i][:, j[0], j[1]] for j in rows_] for i in rows_])
        expected = zip_units(block, models, 0.3, 0.5)
        np.testing.assert_array_equal(found["unit"][:, merged], expected)


@pytest.mark.parametrize("options", [ALIGN, ZIP])
def test_a_label_alone_is_aligned_or_zipped(options):
    spec = spec_of(unit=(6,))
    similarity = draw(0, spec, 2)
    start = stay(spec, 2)
    found = match_family(spec, ["unit"], similarity, start, options)
    solve = zip_units if options.method.zips else align
    expected = solve(similarity["unit"], 2)
    np.testing.assert_array_equal(found["unit"], expected)


def test_a_label_nested_in_two_is_matched_where_their_units_have_gone():
    spec = spec_of(row=(2,), column=(3,), unit=(4, "row", "column"))
    similarity = draw(0, spec, 2)
    start = stay(spec, 2)
    start["row"][1] = [1, 0]
    start["column"][1] = [2, 0, 1]
    found = match_family(spec, ["unit"], similarity, start, ALIGN)
    for i, j in itertools.product(range(2), range(3)):
        theirs = (int(np.argsort([1, 0])[i]), int(np.argsort([2, 0, 1])[j]))
        cut = between(spec, similarity["unit"], "unit", 1, (i, j), theirs)
        block = np.block([[np.eye(4), cut], [cut.T, np.eye(4)]])
        np.testing.assert_array_equal(found["unit"][:, i, j], align(block, 2))


def test_units_with_others_nested_in_them_and_in_a_second_label_are_not_zipped():
    """Each model needs one unit of every merged one, to go on inside it."""
    layer = {"layer": Label(2, (), (), fixed="is scanned")}
    spec = spec_of(expert=(4,), unit=(3, "expert", "layer"))
    spec = PermutationSpec({}, layer | dict(spec.labels))
    similarity, found = draw(0, spec, 2), stay(spec, 2)
    for name in ("expert", "unit"):
        found |= match_family(spec, [name], similarity, found, ZIP)
    expected = align(similarity["expert"], 2)
    np.testing.assert_array_equal(found["expert"], expected)
    grid = similarity["unit"].reshape((2, 4, 2, 3) * 2)
    for expert, layer in itertools.product(range(4), range(2)):
        own = [int(np.flatnonzero(row == expert)[0]) for row in expected]
        blocks = [
            [grid[i, one, layer, :, j, two, layer] for j, two in enumerate(own)]
            for i, one in enumerate(own)
        ]
        row = zip_units(np.block(blocks), 2)
        np.testing.assert_array_equal(found["unit"][:, expert, layer], row)


@pytest.mark.parametrize("options", [ALIGN, ZIP])
def test_a_fixed_label_stays_and_what_is_nested_in_it_is_matched(options):
    """Layers of a stack are not interchangeable, the units inside them are."""
    labels = {"layer": Label(3, (), (), fixed="is scanned")}
    spec = PermutationSpec({}, labels | {"unit": Label(4, ("layer",), ())})
    generator = np.random.default_rng(0)
    drawn = generator.normal(size=(3, 8, 8)).astype(np.float32)
    blocks = (drawn + drawn.mT) / 2
    family, similarity = ["layer", "unit"], {"unit": blocks}
    found = match_family(spec, family, similarity, stay(spec, 2), options)
    np.testing.assert_array_equal(found["layer"], [np.arange(3)] * 2)
    solve = zip_units if options.method.zips else align
    for layer in range(3):
        expected = solve(blocks[layer], 2)
        np.testing.assert_array_equal(found["unit"][:, layer], expected)


def test_labels_are_in_families_with_what_is_nested_in_them():
    attention = tiny.spec_of("attention")
    (head,) = (name for name, label in attention.labels.items() if not label.parents)
    (family,) = families(attention)
    assert family[0] == head
    assert sorted(family) == sorted(attention.labels)
    mlp = tiny.spec_of("mlp")
    assert families(mlp) == [[name] for name in mlp.labels]


def test_a_label_nested_in_two_that_are_not_is_a_family_after_both():
    spec = spec_of(unit=(4, "row", "column"), row=(2,), column=(3,), deep=(2, "row"))
    assert families(spec) == [["row", "deep"], ["column"], ["unit"]]


@pytest.mark.parametrize(("path", "name"), rows("align_groups=.*|zip_groups=.*b=1.0"))
def test_groups_agree_with_recorded_matchings(path, name):
    similarity, expected = read(path, name)
    models, units = expected.shape
    groups = int(re.search(r"groups=(\d+)", name)[1])
    spec = spec_of(group=(groups,), unit=(units // groups, "group"))
    a = re.search(r"a=([\d.]+)", name)
    options = ZIP if "zip" in name else ALIGN
    options = replace(options, a=float(a[1]) if a else 0.5)
    start = stay(spec, models)
    found = match_family(spec, ["group", "unit"], {"unit": similarity}, start, options)
    group = np.repeat(found["group"], units // groups, axis=1)
    inner = [
        np.concatenate([rows_[merged] for merged in order])
        for rows_, order in zip(found["unit"], found["group"], strict=True)
    ]
    assert partition(group * (units // groups) + np.stack(inner)) == partition(expected)
