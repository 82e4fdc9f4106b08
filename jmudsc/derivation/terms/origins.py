"""Origins: which terms a term takes over the positions of."""

from collections.abc import Set

from jmudsc.derivation.terms.axis_terms import Term, Terms


def is_made_of(terms: Terms, term: Term, among: Set[Term], since: int) -> bool:
    """Return whether a term is one of some terms, or takes over positions of one.

    Args:
        terms: the arena.
        term: the term.
        among: what it may be made of.
        since: how many terms there were before it was made.

    Returns:
        Whether it was made of them.
    """
    ahead, done = [term], set()
    while ahead:
        made = ahead.pop()
        if made in among:
            return True
        if made >= since and made not in done:
            done.add(made)
            ahead += terms.origin(made)
    return False


def sources(terms: Terms, term: Term, known: Set[Term]) -> set[Term]:
    """Return those of the known terms that a term was made from.

    Args:
        terms: the arena.
        term: the term.
        known: the terms at which to stop.

    Returns:
        Some of the known terms.
    """
    reached, ahead = set(), [term]
    while ahead:
        made = ahead.pop()
        if made not in reached:
            reached.add(made)
            ahead += () if made in known else terms.origin(made)
    found: dict[Term, set[Term]] = {}
    for made in sorted(reached):  # a term is younger than what it was made from
        if made in known:
            found[made] = {made}
        else:
            before = [found[origin] for origin in terms.origin(made)]
            if terms.is_of_one(made):
                before = [next(filter(None, before), set())]
            found[made] = set().union(*before)
    return found[term]
