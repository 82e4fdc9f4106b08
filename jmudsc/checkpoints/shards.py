"""Shards: which of several files each leaf goes into."""

from collections.abc import Mapping

from jmudsc.lazy import LazyArray


def sharded(leaves: Mapping[str, LazyArray], size: int) -> list[dict[str, LazyArray]]:
    """Deal leaves out to files, in their order, each as full as may be.

    Args:
        leaves: name -> array.
        size: how many bytes a file holds at most; a leaf that is larger is in a file of
            its own.

    Returns:
        The leaves of each file; one file of none if there are none.
    """
    shards: list[dict[str, LazyArray]] = [{}]
    used = 0
    for name, leaf in leaves.items():
        if shards[-1] and used + leaf.nbytes > size:
            shards.append({})
            used = 0
        shards[-1][name] = leaf
        used += leaf.nbytes
    return shards


def shard_names(stem: str, count: int) -> list[str]:
    """Return the names of safetensors files that hold one model.

    Example:
        >>> shard_names("model", 2)
        ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
        >>> shard_names("model", 1)
        ['model.safetensors']
    """
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
