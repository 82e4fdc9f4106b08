"""The law of a rule: what it leaves free may be permuted."""

import itertools

import jax
import numpy as np
import oracles

from jmudsc.derivation.interpreter import _constant
from jmudsc.derivation.program import evaluate_jaxpr
from jmudsc.derivation.rules.table import apply_rule
from jmudsc.derivation.terms.axis_terms import Terms


def walk(fn, args):
    """The axes of operands and outputs of a function after the rules, and the tags."""
    closed = jax.make_jaxpr(fn)(*args)
    flat = jax.make_jaxpr(lambda *args: evaluate_jaxpr(closed, args))(*args)
    jaxpr, terms = flat.jaxpr, Terms()
    axes = {v: [terms.leaf(n) for n in v.aval.shape] for v in jaxpr.invars}
    for var, value in zip(jaxpr.constvars, flat.consts, strict=True):
        axes[var] = _constant(terms, value).axes
    tags, names = dict.fromkeys(axes), []
    for eqn in jaxpr.eqns:
        ins = [
            _constant(terms, v.val).axes if hasattr(v, "val") else axes[v]
            for v in eqn.invars
        ]
        known = [None if hasattr(v, "val") else tags[v] for v in eqn.invars]
        outs, made = apply_rule(terms, eqn, ins, known)
        axes.update(zip(eqn.outvars, outs, strict=True))
        tags.update(zip(eqn.outvars, made, strict=True))
        names.append(eqn.primitive.name)
    oracles.settle(terms, axes.values())
    ins, outs = ([axes[v] for v in vs] for vs in (jaxpr.invars, jaxpr.outvars))
    return terms, ins, outs, [tags[v] for v in jaxpr.outvars], names


def written(terms, ins, outs, tags):
    """The axes in the notation of the cases, letters in order of appearance."""
    letters: dict[int, str] = {}

    def text(term):
        term = terms.root(term)
        match terms.form(term):
            case "product":
                return "*".join(inner(f) for f in terms.factors(term))
            case "concat":
                return "+".join(map(text, terms.parts(term)))
            case "family":
                return "{" + "|".join(map(text, terms.members(term))) + "}"
        if terms.size(term) <= 1 or terms.reason(term) is not None:
            return str(terms.size(term))
        return letters.setdefault(term, "abcdefghijklmnop"[len(letters)])

    def inner(term):
        return f"({text(term)})" if terms.form(term) == "concat" else text(term)

    def value(axes, tag):
        marks = [f"@{text(tag.term)}"] if tag else []
        return " ".join([*map(text, axes), *marks])

    left = ", ".join(value(axes, None) for axes in ins)
    return f"{left} -> {', '.join(map(value, outs, tags))}"


def check_law(fn, args, terms, ins, outs, tags):
    generator, compiled = np.random.default_rng(0), jax.jit(fn)
    every = [*itertools.chain(*ins, *outs)]
    leaves = sorted({leaf for term in every for leaf in terms.leaves(term)})
    for _ in range(2):
        perms = {
            oracles.label(terms, leaf): generator.permutation(terms.size(leaf))
            for leaf in leaves
            if terms.reason(leaf) is None
        }

        def move(array, axes, perms=perms):
            expressed = oracles.expressed(terms, axes)
            return oracles.permuted(np.asarray(array), expressed, perms)

        actual = jax.tree.leaves(compiled(*map(move, args, ins)))
        expected = jax.tree.leaves(compiled(*args))
        for a, b, axes, tag in zip(actual, expected, outs, tags, strict=True):
            if tag is not None:  # positions of the permuted units: where they were
                (axis,) = oracles.expressed(terms, [tag.term])
                a = oracles.positions(axis, perms)[a]
            np.testing.assert_allclose(a, move(b, axes), rtol=1e-5, atol=1e-5)


def random_arrays(shapes, low=-1.0, high=1.0):
    generator = np.random.default_rng(1)
    return [generator.uniform(low, high, s).astype(np.float32) for s in shapes]
