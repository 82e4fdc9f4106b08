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
# Of these, what training takes that reads its images from a packed file.
_TRAINING = ("flax", "optax")


def check_extra(where: str, packed: bool = False) -> None:
    """Check that the packages of the extra `experiments` are installed.

    Imports none of them, so that it is quick.

    Args:
        where: the caller, named in the error.
        packed: whether images come from a packed file, which no data set package reads.

    Raises:
        ValueError: naming every package that is not installed.
    """
    needed = _TRAINING if packed else tuple(PACKAGES)
    missing = [PACKAGES[name] for name in needed if not find_spec(name)]
    if missing:
        raise ValueError(
            f"{where}: expected the extra `experiments` to be installed, got no "
            f"{', '.join(missing)}. Run pip install 'jmudsc[experiments]'."
        )
