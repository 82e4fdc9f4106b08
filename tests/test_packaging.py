"""Packaging: what pyproject, citation, changelog and code say of it agrees."""

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from jmudsc.experiments.extra import PACKAGES

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def named(requirements):
    return {re.match(r"[\w-]+", each)[0].lower() for each in requirements}


CORE = named(PROJECT["dependencies"])
EXPERIMENTS = named(PROJECT["optional-dependencies"]["experiments"])


def test_the_version_is_that_of_the_last_dated_section_of_the_changelog():
    dated = re.findall(r"^## \[([\d.]+)\] - ([\d-]+)$", changelog(), re.M)
    assert dated[0] == (PROJECT["version"], CITATION["date-released"])
    assert CITATION["version"] == PROJECT["version"]


def changelog():
    return (ROOT / "CHANGELOG.md").read_text()


def test_what_moved_is_where_the_changelog_says():
    _, table = changelog().split("| was | is |\n")
    rows = [line for line in table.splitlines() if line.startswith("  | `")]
    assert len(rows) > 5
    for row in rows:
        folder = ""
        for name in re.findall(r"`([\w.]+)`", row.split("|")[2]):
            folder = name.rpartition(".")[0] or folder
            path = name.removeprefix("jmudsc.") if "jmudsc." in name else None
            full = path or f"{folder.removeprefix('jmudsc.')}{name}"
            assert (ROOT / "jmudsc" / f"{full.replace('.', '/')}.py").is_file(), name


def test_the_license_is_the_same_everywhere():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0" in text
    assert PROJECT["license"] == CITATION["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]


OF_USERS = {"experiments", "figures", "keras", "onnx"}


def test_all_that_tests_take_is_in_their_extra():
    extras = PROJECT["optional-dependencies"]
    assert f"jmudsc[{','.join(sorted(OF_USERS))}]" in extras["test"]
    assert extras.keys() == OF_USERS | {"test", "docs", "lint"}


def test_the_extra_is_what_the_commands_ask_for():
    assert {package.lower() for package in PACKAGES.values()} == EXPERIMENTS
    assert not CORE & EXPERIMENTS


IMPORTS = re.compile(r"^\s*(?:import|from) ([a-zA-Z_]\w*)", re.M)
FOLDERS = sorted(path.name for path in (ROOT / "jmudsc").iterdir() if path.is_dir())


@pytest.mark.parametrize("folder", [".", *(f for f in FOLDERS if f != "__pycache__")])
def test_a_folder_imports_only_what_is_installed_with_it(folder):
    allowed = CORE | {"jmudsc"}
    if folder == "experiments":
        allowed |= EXPERIMENTS
    if folder == "landscape":
        allowed |= named(PROJECT["optional-dependencies"]["figures"])
    if folder == "conversion":
        files = [*PROJECT["optional-dependencies"]["keras"]]
        allowed |= named([*files, *PROJECT["optional-dependencies"]["onnx"]])
    if folder == "adapters":  # each its own library
        allowed |= named(PROJECT["optional-dependencies"]["test"]) | EXPERIMENTS
    distributions = packages_distributions()
    pattern = "*.py" if folder == "." else "**/*.py"
    for path in (ROOT / "jmudsc" / folder).glob(pattern):
        code = re.sub(r'"""(?s:.*?)"""', "", path.read_text())
        for module in IMPORTS.findall(code):
            for package in distributions.get(module, ()):
                assert package.lower() in allowed, f"{path} imports {module}"
