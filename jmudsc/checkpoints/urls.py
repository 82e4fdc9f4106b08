"""URLs: whether the file system that one names is there."""

from etils import epath


def reached(url: str) -> epath.Path:
    """Return the path of a URL whose file system is installed.

    Args:
        url: `gs://bucket/run`, say.

    Raises:
        ValueError: if there is no such file system, or no package for it.
    """
    try:
        place = epath.Path(url)
        place.exists()
    except ImportError as error:
        raise ValueError(
            f"{url}: expected a file system that is installed, got one without its "
            f"package: {error}. Install that, or copy the checkpoint here."
        ) from error
    except (KeyError, NotImplementedError) as error:
        scheme = url.partition("://")[0]
        raise ValueError(
            f"{url}: expected a file system that etils.epath knows, such as gs:// or "
            f"s3://, got {scheme}://. Copy the checkpoint here."
        ) from error
    return place
