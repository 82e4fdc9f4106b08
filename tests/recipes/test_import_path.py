import re

import pytest

from jmudsc.recipes.import_path import (
    called_if_function,
    ImportPath,
    plain_import_path,
    read_import_path,
    resolve,
)


@pytest.mark.parametrize(
    "plain", ["m:f", {"factory": "m.n:f.g", "size": 3}, {"factory": "m:f"}], ids=str
)
def test_an_import_path_is_written_as_it_was_read(plain):
    assert plain_import_path(read_import_path(plain)) == plain


@pytest.mark.parametrize("wrong", ["my_data", ":f", "m:", {"size": 3}, 3], ids=repr)
def test_what_names_no_object_is_refused(wrong):
    expected = 'expected "module:name" or {factory: "module:name", ...}, got '
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}"):
        read_import_path(wrong)


def test_objects_are_imported_from_the_folder_of_the_recipe(tmp_path):
    (tmp_path / "my_model_of_test.py").write_text(
        "def make(size):\n    return [size]\n"
    )
    assert resolve(ImportPath("my_model_of_test:make", {"size": 3}), tmp_path) == [3]
    assert resolve(ImportPath("my_model_of_test:make"), tmp_path)(4) == [4]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            ImportPath("no_such_module_here:f"),
            'expected a module "no_such_module_here", got none, neither installed nor '
            "in {folder}. Install it or correct the name.",
        ),
        (
            ImportPath("jmudsc.experiments.demo:aply_fn"),
            'expected "aply_fn" in jmudsc.experiments.demo, as '
            '"jmudsc.experiments.demo:aply_fn" says, got a module without it; did you '
            'mean "apply_fn"? Correct the name.',
        ),
        (
            ImportPath("jmudsc.paths:listed", {"line": []}),
            'expected arguments that "jmudsc.paths:listed" takes, got line: missing a '
            "required argument: 'lines'. Correct the keys beside factory.",
        ),
    ],
)
def test_import_paths_to_nothing_are_refused(path, expected, tmp_path):
    expected = expected.format(folder=tmp_path)
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        resolve(path, tmp_path)


def test_a_function_that_makes_batches_is_called(tmp_path):
    (tmp_path / "my_data_of_test.py").write_text(
        "listed = [1, 2]\ndef made():\n    return [3]\n"
        "def sized(size):\n    return []\n"
    )

    def named(name):
        path = ImportPath(f"my_data_of_test:{name}")
        return called_if_function(path, resolve(path, tmp_path))

    assert named("listed") == [1, 2]
    assert named("made") == [3]
    expected = (
        'expected arguments that "my_data_of_test:sized" takes, got no arguments: '
        "missing a required argument: 'size'. Write {factory: my_data_of_test:sized, "
        "...} with these as keys."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        named("sized")
