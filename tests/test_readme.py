"""The code of the README runs, and its commands are those that CI calls."""

import re
from pathlib import Path

import jax

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def test_the_python_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    with jax.numpy_rank_promotion("allow"):  # readers' code may rely on it
        for block in blocks("python"):
            exec(block, scope)
    assert "P_0" in capsys.readouterr().out
    assert (tmp_path / "merged").is_dir()


def test_each_of_the_two_commands_is_one_line_that_installs_and_runs():
    commands = {
        "demo": "pip install '.[experiments]' && .venv/bin/jmudsc demo",
        "test": "pip install -e '.[test]' && .venv/bin/pytest",
    }
    for name, rest in commands.items():
        (block,) = blocks(f"sh {name}")
        assert block == f"python3 -m venv .venv && .venv/bin/{rest}\n"


def test_every_file_that_the_documents_point_to_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
