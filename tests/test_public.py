"""The public names: where each comes from, and what is not imported before its use."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jmudsc

SUBMODULES = {"experiments", "landscape", "recipes"}


def names_of_the_page() -> list[str]:
    """Return the names that the package's docstring explains, one a line."""
    assert jmudsc.__doc__ is not None
    return re.findall(r"^    (\w+): .*\.$", jmudsc.__doc__, re.M)


def names_of_type_checkers() -> dict[str, str]:
    """Return the names that type checkers see, and the module of each."""
    tree = ast.parse(Path(jmudsc.__file__).read_text())
    block = next(
        node.body
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    return {
        name.name: node.module
        for node in block
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.asname == name.name
    }


NAMES = names_of_the_page()


def test_the_page_and_type_checkers_and_imports_have_the_same_names():
    assert len(NAMES) == len(set(NAMES))
    assert sorted(NAMES) == sorted(jmudsc.__all__)
    assert set(NAMES) == set(names_of_type_checkers())
    assert {*NAMES, "__version__"} <= set(dir(jmudsc))


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_that_of_its_module_and_has_a_docstring(name):
    module = importlib.import_module(names_of_type_checkers()[name])
    scope = {}
    exec(f"from jmudsc import {name}", scope)
    assert scope[name] is getattr(jmudsc, name) is getattr(module, name)
    if name != "METHODS":
        assert scope[name].__doc__


def test_folders_are_those_of_the_page():
    for name in SUBMODULES:
        folder = importlib.import_module(f"jmudsc.{name}")
        assert getattr(jmudsc, name) is folder
        assert (Path(jmudsc.__file__).parent / name).is_dir()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(
        AttributeError, match=r"^module 'jmudsc' has no attribute 'merg'$"
    ):
        jmudsc.merg  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'merg'"):
        exec("from jmudsc import merg")


def imported_by(statements: str) -> set[str]:
    """Return the modules that a fresh interpreter holds after some statements."""
    code = f"import sys\n{statements}\nprint(*sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    return set(found.stdout.split())


def test_the_package_and_the_command_line_import_nothing_heavy():
    heavy = {"jax", "numpy", "scipy", "flax", "orbax", "etils", "jaxtyping", "yaml"}
    assert not heavy & imported_by("import jmudsc, jmudsc.cli")
    for name in SUBMODULES:
        assert not heavy & imported_by(f"import jmudsc\njmudsc.{name}")


def test_the_public_names_import_no_checkpoint_format_and_nothing_of_experiments():
    unused = {
        "flax", "orbax.checkpoint", "safetensors", "scipy.optimize",
        "optax", "sklearn", "tensorflow_datasets", "PIL", "matplotlib",
    }  # fmt: skip
    loaded = imported_by(f"from jmudsc import {', '.join(NAMES)}")
    assert "jmudsc.merging.merge" in loaded
    assert not unused & loaded
