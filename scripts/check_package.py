"""Build the wheel and the sdist, and check what is in them and how large they are."""

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LARGEST = 1_500_000  # bytes, of text: nothing binary is that large
# All that may stand at the top of the sdist, besides what the build adds.
TOP = {
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "configs",
    "docs",
    "examples",
    "jmudsc",
    "mkdocs.yml",
    "pyproject.toml",
    "scripts",
    "tests",
}
ADDED = {"PKG-INFO", ".gitignore"}
ENDINGS = {
    "",
    ".cff",
    ".cfg",
    ".ipynb",
    ".md",
    ".npz",
    ".png",
    ".py",
    ".toml",
    ".typed",
    ".yaml",
    ".yml",
}


def main() -> None:
    """Build both, and end with status 1 if there is anything wrong with them."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "build", "--outdir", folder, str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (wheel,) = Path(folder).glob("*.whl")
        (sdist,) = Path(folder).glob("*.tar.gz")
        problems = [*in_wheel(wheel), *in_sdist(sdist)]
        sizes = {file.name: file.stat().st_size for file in (wheel, sdist)}
    problems += [f"{n}: {size} bytes" for n, size in sizes.items() if size > LARGEST]
    for name, size in sizes.items():
        print(f"{name}: {size / 1000:.0f} kB")
    if problems:
        sys.exit("Should not be in the packages:\n  " + "\n  ".join(problems))


def in_wheel(wheel: Path) -> list[str]:
    """Return what is neither code of the package, nor its type marker, nor metadata."""
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert {"jmudsc/__init__.py", "jmudsc/cli.py", "jmudsc/py.typed"} <= set(names)
    return [
        f"{wheel.name}: {name}"
        for name in names
        if ".dist-info/" not in name
        and not (name.startswith("jmudsc/") and name.endswith((".py", "py.typed")))
    ]


def in_sdist(sdist: Path) -> list[str]:
    """Return what is in no folder of the sources, or of another kind than they."""
    with tarfile.open(sdist) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    assert {"LICENSE", "README.md", "pyproject.toml", "jmudsc/cli.py"} <= set(names)
    return [
        f"{sdist.name}: {name}"
        for name in names
        if name not in ADDED
        and (name.split("/")[0] not in TOP or Path(name).suffix not in ENDINGS)
    ]


if __name__ == "__main__":
    main()
