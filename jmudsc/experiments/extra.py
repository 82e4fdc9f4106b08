"""Extra: whether what experiments take is installed, besides what merging takes."""

from importlib.util import find_spec

# Module -> the package of the extra `experiments` that it is in.
PACKAGES = {
    "flax": "flax",
    "importlib_resources": "importlib_resources",
    "optax": "optax",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "tensorflow_datasets": "tensorflow-datasets",
}


def check_extra(where: str) -> None:
    """Check that the packages of the extra `experiments` are installed.

    Imports none of them, so that it is quick.

    Args:
        where: the caller, named in the error.

    Raises:
        ValueError: naming every package that is not installed.
    """
    missing = [package for name, package in PACKAGES.items() if not find_spec(name)]
    if missing:
        raise ValueError(
            f"{where}: expected the extra `experiments` to be installed, got no "
            f"{', '.join(missing)}. Run pip install 'jmudsc[experiments]'."
        )
