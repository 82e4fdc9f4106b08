"""Pairing: which array of a file is which leaf of a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jmudsc.conversion.keras_files import groups_of, is_numbered
from jmudsc.conversion.roles import ORDER, role_of
from jmudsc.paths import nearest

Shapes = Mapping[str, tuple[int, ...]]
# What files hold that no network has, by the end of the name.
_UNWANTED = ("num_batches_tracked", "iterations", "seed_generator_state")


@dataclass(frozen=True)
class Pairing:
    """Which array of a file is which leaf, and what is wrong with that.

    Attributes:
        sources: path of a leaf -> name of the array.
        problems: one line for each leaf or array that has no partner, or several.
    """

    sources: Mapping[str, str]
    problems: Sequence[str]


def paired(names: Mapping[str, str], arrays: Shapes, leaves: Shapes) -> Pairing:
    """Say which array is which leaf, by their names.

    Args:
        names: name of an array in the file -> name to go by.
        arrays: name of an array -> its shape.
        leaves: path of a leaf of the network -> its shape.
    """
    by_role: dict[str, list[str]] = {}
    for name, own in names.items():
        if not is_numbered(own) and not own.endswith(_UNWANTED):
            role = str(role_of(own, len(arrays[name])))
            by_role.setdefault(role, []).append(name)
    for layer, numbered in groups_of(names).items():
        for role, name in zip(_roles_of(layer, leaves), numbered, strict=False):
            by_role.setdefault(role, []).append(name)
    return _sorted_out(by_role, names, leaves)


def _sorted_out(
    by_role: Mapping[str, Sequence[str]], names: Mapping[str, str], leaves: Shapes
) -> Pairing:
    sources, problems = {}, []
    for path, shape in leaves.items():
        found = by_role.get(str(role_of(path, len(shape))), ())
        if len(found) == 1:
            sources[path] = found[0]
        elif found:
            problems.append(f"{path}: may be {' or '.join(found)}")
    taken = {*sources.values(), *(n for x in by_role.values() if len(x) > 1 for n in x)}
    left = {
        name: own
        for name, own in names.items()
        if name not in taken and not own.endswith(_UNWANTED)
    }
    said = {line.partition(":")[0] for line in problems}
    for path in leaves:
        if path not in sources and path not in said:
            close = nearest(path, left.values()) or next(iter(left.values()), None)
            hint = f'; did you mean "{close}"?' if close else ""
            problems.append(f"{path}: nothing in the file{hint}")
    problems += [f"{own}: no leaf of the network" for own in left.values()]
    return Pairing(sources, problems)


def _roles_of(layer: str, leaves: Shapes) -> list[str]:
    """Return the roles of the leaves of a layer, in the order of Keras' numbers."""
    words = tuple(word for word in layer.split("/") if word)
    roles = [role_of(path, len(shape)) for path, shape in leaves.items()]
    own = [role for role in roles if role.layer == words]
    order = {leaf: place for place, leaf in enumerate(ORDER)}
    return [str(x) for x in sorted(own, key=lambda x: order.get(x.leaf, len(order)))]
