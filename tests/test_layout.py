"""The house: arrows between folders one way, files and functions short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "jmudsc"
# The ground, which every folder may import: modules that know no spec.
GROUND = {
    "batches",
    "compiled",
    "digests",
    "keys",
    "lazy",
    "paths",
    "processes",
    "progress",
    "sharding",
    "tables",
    "types",
}
# Folder -> the folders that it may import, besides the ground and itself.
MAY_IMPORT = {
    "spec": "",
    "reordering": "spec",
    "derivation.terms": "",
    "derivation.rules": "derivation.terms",
    "derivation": "spec reordering derivation.terms derivation.rules",
    "checkpoints": "",
    "matching": "spec reordering derivation derivation.terms",
    "repairs": "spec reordering derivation derivation.terms derivation.rules",
    "merging": (
        "spec reordering derivation derivation.terms checkpoints matching repairs"
    ),
    "finetunes": (
        "spec reordering derivation derivation.terms checkpoints matching repairs "
        "merging"
    ),
    "lora": "checkpoints merging finetunes",
    "landscape": "",
    "adapters": "",
    "conversion": "checkpoints",
    "recipes": (
        "spec reordering derivation derivation.rules checkpoints matching repairs "
        "merging finetunes lora landscape adapters conversion"
    ),
    "experiments": (
        "spec reordering derivation checkpoints matching repairs merging finetunes "
        "landscape recipes"
    ),
    "commands": "checkpoints merging finetunes lora conversion recipes experiments",
}
DEEPEST = 11


# What `import jmudsc` offers: options of users are keywords.
PUBLIC = {
    name.asname
    for node in ast.walk(ast.parse((PACKAGE / "__init__.py").read_text()))
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}


def folder_of(module: str) -> str:
    return module.rpartition(".")[0]


MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def imported(path: Path) -> Iterator[str]:
    """Yield every module of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                assert not name.name.startswith("jmudsc."), f"{path}: from ... import"
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            package, _, module = node.module.partition(".")
            if package == "jmudsc":
                for name in node.names:
                    inner = f"{module}.{name.name}".lstrip(".")
                    yield inner if inner in MODULES else module


def test_every_folder_is_in_the_table():
    assert {folder_of(module) for module in MODULES} == {"", *MAY_IMPORT}
    assert {module for module in MODULES if "." not in module} == GROUND | {"cli"}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"cli"}))
def test_a_module_imports_only_what_its_folder_may(module):
    folder = folder_of(module)
    allowed = {"", folder, *MAY_IMPORT.get(folder, "").split()}
    for other in imported(MODULES[module]):
        assert folder_of(other) in allowed, f"{module} imports {other}"
        assert other in GROUND or "." in other, f"{module} imports {other or 'jmudsc'}"


def test_the_table_has_no_cycle_and_is_not_deep():
    ways = {folder: allowed.split() for folder, allowed in MAY_IMPORT.items()}
    depth: dict[str, int] = {}
    for folder in ways:  # lower folders come first in the table
        assert all(other in depth for other in ways[folder]), folder
        depth[folder] = 2 + max((depth[other] - 1 for other in ways[folder]), default=0)
    assert max(depth.values()) <= DEEPEST


def test_no_module_of_a_folder_imports_in_a_circle():
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in imported(MODULES[module]):
                if other in MODULES and other != module:
                    visit(other, (*way, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_a_folder_says_in_one_sentence_what_it_is_for_and_exports_nothing(folder):
    tree = ast.parse((PACKAGE / folder.replace(".", "/") / "__init__.py").read_text())
    sentence = ast.get_docstring(tree)
    assert sentence is not None
    assert "\n" not in sentence
    assert sentence.endswith(".")
    # `jmudsc.adapters.nnx` is imported, and so its library, when it is asked for.
    assert len(tree.body) == 1 or folder == "adapters"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_files_and_functions_are_short(module):
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            lines = node.end_lineno - body[0].lineno + 1 if body else 0
            assert lines <= 60, f"{module}.{node.name} has {lines} lines"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_what_is_private_takes_few_parameters(module):
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.FunctionDef):
            taken = node.args
            count = len([*taken.posonlyargs, *taken.args, *taken.kwonlyargs])
            is_command = module == f"commands.{node.name}"
            if node.name not in PUBLIC and not is_command:
                assert count <= 7, f"{module}.{node.name} takes {count}"
