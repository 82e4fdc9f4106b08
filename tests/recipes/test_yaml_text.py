"""What a YAML file may say and cannot mean is refused before any value is made."""

import re
import time

import pytest

from jmudsc.recipes.import_path import read_import_path
from jmudsc.recipes.reader import read_recipe
from jmudsc.recipes.yaml_text import decoded, plain_values

WHERE = "recipe.yaml"
GOOD = "models: [a, b]\napply_fn: m:f\nbatches: m:b\noutput: é\n"


def read(text):
    return plain_values(WHERE, text.encode())


def refused(message):
    return pytest.raises(ValueError, match=f"^{re.escape(message)}$")


def test_keys_that_are_given_twice_are_all_named():
    text = "alpha: 1\nbatches: {size: 1, size: 2}\nalpha: 2\n1: a\n1.0: b\n"
    message = (
        "recipe.yaml: expected every key once, got 3 keys twice:\n"
        "  alpha: on line 1 and on line 3\n"
        "  1.0: on line 4 and on line 5\n"
        "  size: on line 2 and on line 2\n"
        "Leave out one of each."
    )
    with refused(message):
        read(text)
    with refused(
        "recipe.yaml: expected every key once, got 1 key twice:\n"
        "  a: on line 1 and on line 2\nLeave out one of each."
    ):
        read("a: 1\na: 1\n")


def test_a_key_that_overrides_a_merged_one_is_no_second_one():
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, a: 3}\n"
    assert read(text)["more"] == {"a": 3, "b": 2}


def laughs(levels, width):
    lines = ["a0: &a0 x"]
    for level in range(1, levels):
        row = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{row}]")
    return "\n".join(lines)


@pytest.mark.parametrize(("levels", "width"), [(10, 10), (40, 2), (3, 150)])
def test_aliases_that_explode_are_refused_at_once(levels, width):
    start = time.perf_counter()
    with pytest.raises(ValueError, match="expected at most 20000 values") as error:
        read(laughs(levels, width))
    assert time.perf_counter() - start < 2
    assert re.fullmatch(
        r"recipe\.yaml: expected at most 20000 values, got more up to line \d+, each "
        r"counted as often as aliases repeat it\. Leave out aliases of aliases\.",
        str(error.value),
    )


def test_aliases_that_do_not_explode_are_read():
    assert read(laughs(4, 3))["a3"] == [[["x"] * 3] * 3] * 3


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: [1, {c: *a}]}"])
def test_a_value_within_itself_is_refused(text):
    with refused(
        "recipe.yaml: expected values that end, got *a on line 1 within what it stands "
        "for. Leave it out."
    ):
        read(text)


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 5000 + "]" * 5000, "a: " + "{b: " * 5000, "- " * 5000 + "a"],
)
def test_deep_nesting_is_refused(text):
    with refused(
        "recipe.yaml: expected at most 50 levels of values in values, got more on line "
        "1. Correct the brackets."
    ):
        read(text)


@pytest.mark.parametrize("sign", ["", "-", "+"])
def test_numbers_of_many_digits_are_refused(sign):
    message = (
        "recipe.yaml: expected numbers of at most 300 digits, got one of {} on line 2. "
        "Correct it."
    )
    for digits in (400, 5000):
        for number in ("9" * digits, "9" + "_9" * (digits - 1)):
            with refused(message.format(digits)):
                read(f"a: 1\nseed: {sign}{number}")
    assert read(f"seed: '{'9' * 400}'")["seed"] == "9" * 400


UNREADABLE = {
    "seed: !!timestamp abc": "recipe.yaml: expected values that their tags are for, ",
    "a: !!python/object:os.system {}": "recipe.yaml: expected YAML, got a text that is",
    "a: *b": "recipe.yaml: expected YAML, got a text that is none. Correct this:\n",
    "\ta: 1": "recipe.yaml: expected YAML, got a text that is none. Correct this:\n",
    "a: 1\n---\na: 2": "recipe.yaml: expected YAML, got a text that is none. Correct",
    "a: \x07": "recipe.yaml: expected YAML, got a text that is none. Correct this:\n",
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_values_that_cannot_be_read_are_refused(text):
    with pytest.raises(ValueError) as error:  # noqa: PT011  (its start is compared)
        read(text)
    assert str(error.value).startswith(UNREADABLE[text])


def test_a_date_that_is_none_is_refused():
    with refused(
        "recipe.yaml: expected values that can be read, got one that cannot: month "
        "must be in 1..12. Put it in quotes if it is a text."
    ):
        read("seed: 2024-13-45")


def test_a_wrong_tag_is_told_in_full():
    with refused(
        "recipe.yaml: expected values that their tags are for, got another after one "
        "of !!bool, !!timestamp and such. Leave the tag out."
    ):
        read("check: !!bool abc")


def test_a_large_file_is_refused():
    with refused(
        "recipe.yaml: expected YAML of at most 1048576 bytes, got 1048580. Correct the "
        "path; arrays belong into checkpoints."
    ):
        read("# " + "x" * (2**20 + 2))


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_that_can_be_told_are_read(encoding, tmp_path):
    file = tmp_path / WHERE
    file.write_bytes(GOOD.encode(encoding))
    assert read_recipe(file).output == "é"


OTHERS = {
    "latin-1": (
        GOOD.encode("latin-1"),
        "a text in UTF-8, got the byte 0xe9 on line 4, which is no text there.",
    ),
    "utf-16 without a mark": (
        GOOD.replace("é", "e").encode("utf-16-le"),
        "a text in UTF-8, got one with zero bytes, as UTF-16 without a byte order mark "
        "has.",
    ),
    "utf-16 cut short": (
        GOOD.encode("utf-16")[:-1],
        "a text in UTF-16, got the byte 0x0a on line 4, which is no text there.",
    ),
    "an archive": (
        b"\x1f\x8b\x08" + bytes(range(256)),
        "a text in UTF-8, got the byte 0x8b on line 1, which is no text there.",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_encodings_are_refused(name):
    data, rest = OTHERS[name]
    with refused(f"recipe.yaml: expected {rest} Save the file as UTF-8."):
        plain_values(WHERE, data)


def test_a_spec_in_another_encoding_is_refused_too():
    assert decoded("spec.txt", "é".encode("utf-16")) == "é"
    with pytest.raises(ValueError, match=r"^spec\.txt: expected a text in UTF-8, got"):
        decoded("spec.txt", "é".encode("latin-1"))


def test_names_of_arguments_are_text():
    with refused(
        "expected names of arguments beside factory, got 1. Put it in quotes."
    ):
        read_import_path({"factory": "m:f", 1: 2})


def test_long_keys_and_values_are_cut(tmp_path):
    file = tmp_path / WHERE
    file.write_text(f'{GOOD}? "{"k" * 100000}"\n: 1\nmethod: {"x" * 100000}\n')
    start = time.perf_counter()
    with pytest.raises(ValueError, match="correct 2 mistakes") as error:
        read_recipe(file)
    assert time.perf_counter() - start < 10
    key, value = str(error.value).splitlines()[1:]
    assert key == f"  {'k' * 100}... (100000 characters): there is no such key."
    assert value.endswith(f'got "{"x" * 100}... (100000 characters)".')
