"""Methods: the table of all ways to merge fine-tunes, a row each."""

from jmudsc import paths
from jmudsc.finetunes.method import Method
from jmudsc.finetunes.methods_by_data import BY_DATA
from jmudsc.finetunes.methods_by_entry import BY_ENTRY
from jmudsc.finetunes.methods_by_matrix import BY_MATRIX

FINETUNE_METHODS = {row.name: row for row in (*BY_ENTRY, *BY_MATRIX, *BY_DATA)}
_BY_ALIAS = {
    alias: row
    for row in FINETUNE_METHODS.values()
    for alias in (row.name, *row.aliases)
}


def is_method(name: object) -> bool:
    """Whether something is the name of a method, or another name of one."""
    return isinstance(name, str) and name in _BY_ALIAS


def method_problems(name: object) -> list[str]:
    """Return what is wrong with the name of a method: one line, or none."""
    if is_method(name):
        return []
    hint = paths.did_you_mean(name, _BY_ALIAS) if isinstance(name, str) else ""
    known = ", ".join(FINETUNE_METHODS)
    return [f"method: expected one of {known}, got {name!r}{hint}"]


def method_of(name: str) -> Method:
    """Return the row of a method by its name or another name of it."""
    return _BY_ALIAS[name]
