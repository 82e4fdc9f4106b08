"""Random small programs for the law of a spec: permuted leaves, the same outputs.

A program is lines of code, each a few operations on values made before. Sizes are few,
so that axes which have nothing to do with one another are easily taken for the same;
most outputs weigh every entry of a value with a leaf, which hides no permutation.
"""

import re
from dataclasses import dataclass, field

import interpreter
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import program_families
from jax import lax

from jmudsc import infer_spec
from jmudsc.derivation.program import trace
from jmudsc.derivation.taps import find_taps

SIZES = (2, 3, 4, 6)
KNOWN = {"jax": jax, "jnp": jnp, "lax": lax, "np": np, "rig": program_families}
MOST_ENTRIES = 300
# Of each family in the slow part of the tests: 2,000 of all six together.
PROGRAMS_EACH = 334

# A wrong permutation changes outputs by about their size; double precision by 1e-12.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Program:
    """Lines `(name, code)`, the codes of the outputs, leaves and inputs by name."""

    lines: tuple[tuple[str, str], ...]
    outputs: tuple[str, ...]
    leaves: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]

    def __call__(self, variables, batch):
        values = {**KNOWN, **variables, **batch}
        for name, code in self.lines:
            values[name] = eval(code, values)
        return [eval(code, values) for code in self.outputs]

    def __str__(self):
        leaves = [f"{name}: {leaf.shape}" for name, leaf in self.leaves.items()]
        lines = [f"{name} = {code}" for name, code in self.lines]
        return "\n".join([*leaves, *lines, "return " + ", ".join(self.outputs)])


def pruned(program):
    """Drop the lines and leaves that no output needs."""
    used, lines = set(re.findall(r"\w+", " ".join(program.outputs))), []
    for name, code in reversed(program.lines):
        if name in used:
            lines.append((name, code))
            used.update(re.findall(r"\w+", code))
    leaves = {name: leaf for name, leaf in program.leaves.items() if name in used}
    return Program(tuple(lines[::-1]), program.outputs, leaves, program.inputs)


@dataclass
class Draft:
    """A program in the making.

    Attributes:
        random: where everything comes from.
        inputs: the batch: vectors, indices that vary with them, one index.
        leaves: by name.
        known: shape and dtype of every value.
        lines: as in `Program`.
    """

    random: np.random.Generator
    inputs: dict = field(default_factory=dict)
    leaves: dict = field(default_factory=dict)
    known: dict = field(default_factory=dict)
    lines: list = field(default_factory=list)

    def __post_init__(self):
        self.inputs = {
            "x": self.random.normal(size=(4, 3)),
            "z": self.random.normal(size=(2, 3)),
            "i": self.random.integers(0, 2, 4),
            "j": self.random.integers(0, 3, ()),
        }
        for name, value in self.inputs.items():
            dtype = np.int32 if value.dtype.kind == "i" else np.float32
            self.known[name] = jax.ShapeDtypeStruct(value.shape, dtype)

    def one(self, options):
        options = list(options)
        return options[self.random.integers(len(options))]

    def chance(self, p):
        return self.random.random() < p

    def order(self, items):
        return [items[n] for n in self.random.permutation(len(items))]

    def size(self):
        return self.one(SIZES)

    def leaf(self, *shape):
        """A leaf of some shape, new or one that is there already."""
        same = [name for name, leaf in self.leaves.items() if leaf.shape == shape]
        if same and self.chance(0.25):
            return self.one(same)
        name = f"p{len(self.leaves)}"
        self.leaves[name] = self.random.normal(size=shape)
        self.known[name] = jax.ShapeDtypeStruct(shape, np.float32)
        return name

    def shape(self, name):
        return self.known[name].shape

    def values(self, *ranks, kind="f"):
        return [
            name
            for name, value in self.known.items()
            if value.dtype.kind == kind and value.ndim in (ranks or (1, 2, 3, 4))
        ]

    def value(self, *ranks):
        """A value, more often a late one."""
        names = self.values(*ranks)
        if not names:
            return self.leaf(*(self.size() for _ in range(self.one(ranks))))
        weights = np.arange(1, len(names) + 1) ** 1.5
        return str(self.random.choice(names, p=weights / weights.sum()))

    def axis(self, name):
        return int(self.random.integers(len(self.shape(name))))

    def add(self, code):
        """Add a line unless it is no program or too large."""
        try:
            made = jax.eval_shape(lambda v: eval(code, {**KNOWN, **v}), self.known)
        except (TypeError, ValueError, IndexError, ZeroDivisionError):
            return
        if isinstance(made, jax.ShapeDtypeStruct) and 0 < made.size <= MOST_ENTRIES:
            name = f"v{len(self.lines)}"
            self.lines.append((name, code))
            self.known[name] = made


def dense(d):
    v = d.value(1, 2, 3)
    width = d.shape(v)[-1]
    return f"jnp.tanh({v} @ {d.leaf(width, d.one([*SIZES, width]))})"


def square(d):
    """Mix the positions of an axis by a square kernel, with or without a residual."""
    v = d.value(1, 2, 3)
    axis, names = d.axis(v), "abc"[: len(d.shape(v))]
    size, old = d.shape(v)[axis], names[axis]
    kernels = [name for name in d.values(2) if d.shape(name) == (size, size)]
    kernel = d.one([*kernels, d.leaf(size, size)])
    sides = d.one([f"{old}y", f"y{old}"])
    mixed = f"jnp.einsum('{names},{sides}->{names.replace(old, 'y')}', {v}, {kernel})"
    return f"{v} + {mixed}" if d.chance(0.6) else mixed


def product(d):
    """Any contraction of two values, of one with itself, or of one with a leaf."""
    v = d.value(1, 2, 3)
    left = "abcd"[: len(d.shape(v))]
    sizes = dict(zip(left, d.shape(v), strict=True))
    if d.chance(0.5):
        right = [c for c in left if d.chance(0.6)]
        new = [c for c in "xy" if d.chance(0.5)]
        sizes |= {c: d.one([*SIZES, *sizes.values()]) for c in new}
        right = "".join(d.order(right + new))
        if not right:
            return None
        u = d.leaf(*(sizes[c] for c in right))
    else:
        u, right = v if d.chance(0.3) else d.value(1, 2, 3), ""
        for new, size in zip("wxyz", d.shape(u), strict=False):
            same = [c for c in left if sizes[c] == size and c not in right]
            right += d.one(same) if same and d.chance(0.7) else new
    names = dict.fromkeys(left + right)
    both = set(left) & set(right)
    kept = [c for c in names if d.chance(0.45 if c in both else 0.85)]
    return f"jnp.tanh(jnp.einsum('{left},{right}->{''.join(d.order(kept))}', {v}, {u}))"


def per_place(d):
    """A kernel of its own at every position of another axis."""
    v = d.value(2, 3)
    names, out = "abc"[: len(d.shape(v))], d.size()
    place, summed, *_ = d.order(list(names))
    sizes = dict(zip(names, d.shape(v), strict=True))
    kernel = d.leaf(sizes[place], sizes[summed], out)
    kept = names.replace(summed, "")
    return f"jnp.einsum('{names},{place}{summed}x->{kept}x', {v}, {kernel})"


def binary(d):
    v, sign = d.value(), d.one("+-*")
    same = [name for name in d.values() if d.shape(name) == d.shape(v)]
    if d.chance(0.6):
        return f"{v} {sign} {d.one(same)}"
    shape = [size if d.chance(0.7) else 1 for size in d.shape(v)]
    return f"{v} {sign} {d.leaf(*shape)}"


def outer(d):
    return f"{d.value(1, 2)}[..., None] * {d.value(1)}"


def unary(d):
    v = d.value()
    a = d.axis(v)
    return d.one(
        [
            f"jax.nn.softmax({v}, {a})",
            f"jnp.sin({v})",
            f"{v} - {v}.mean({a}, keepdims=True)",
            f"{v} / jnp.sqrt(1 + ({v} ** 2).mean({a}, keepdims=True))",
        ]
    )


def by_position(d):
    v = d.value(1, 2, 3)
    a, rank = d.axis(v), len(d.shape(v))
    size = d.shape(v)[a]
    window = tuple(3 if axis == a else 1 for axis in range(rank))
    around = tuple((1, 1) if axis == a else (0, 0) for axis in range(rank))
    order = d.order(list(range(size)))
    made = d.one(
        [
            f"jnp.cumsum({v}, {a})",
            f"jnp.flip({v}, {a})",
            f"jnp.roll({v}, {d.random.integers(size)}, {a})",
            f"jnp.sort({v}, {a})",
            f"jnp.real(jnp.fft.fft({v}, axis={a}))",
            f"jnp.take({v}, jnp.array({order}), axis={a})",
            f"lax.reduce_window({v}, 0.0, lax.add, {window}, {(1,) * rank}, {around})",
        ]
    )
    return f"{v} + {made}" if d.chance(0.6) else made


def attention(d):
    v = d.value(2, 3)
    width, size = d.shape(v)[-1], d.size()
    query, key = d.leaf(width, size), d.leaf(width, size)
    scores = f"({v} @ {query}) @ jnp.swapaxes({v} @ {key}, -1, -2)"
    return f"{v} + jax.nn.softmax({scores}) @ ({v} @ {d.leaf(width, width)})"


def reshape(d):
    v = d.value()
    shape = list(d.shape(v))
    if d.chance(0.5) and len(shape) > 1:
        n = int(d.random.integers(len(shape) - 1))
        shape[n : n + 2] = [shape[n] * shape[n + 1]]
    else:
        n, factor = d.axis(v), d.size()
        shape[n : n + 1] = [factor, shape[n] // factor]
    return f"{v}.reshape({tuple(shape)})"


def shuffle(d):
    """Channels laid out in two rows come back column by column."""
    v = d.value(1, 2)
    grid = f"{v}.reshape(*{v}.shape[:-1], {d.one((2, 3))}, -1)"
    made = f"jnp.swapaxes({grid}, -1, -2).reshape({v}.shape)"
    return f"{v} + {made}" if d.chance(0.5) else made


def transpose(d):
    v = d.value(2, 3)
    return f"{v}.transpose({tuple(d.order(list(range(len(d.shape(v))))))})"


def join(d):
    v = d.value()
    a, rank = d.axis(v), len(d.shape(v))
    others = [v, *(n for n in d.values(rank) if n != v)]
    parts = ", ".join([v, *(d.one(others) for _ in range(d.one((1, 1, 2))))])
    return d.one([f"jnp.concatenate([{parts}], {a})", f"jnp.stack([{parts}], {a})"])


def cut(d):
    v = d.value(1, 2, 3)
    a, rank = d.axis(v), len(d.shape(v))
    size = d.shape(v)[a]
    n = int(d.random.integers(size))
    at, before = ":, " * a, [(int(axis == a), 0) for axis in range(rank)]
    shifted = ", ".join(f"{v}[{at}{(place + 1) % size}]" for place in range(size))
    return d.one(
        [
            *[f"{v}[{at}{n}]"] * 2,
            f"{v}[{at}{n}:]",
            f"{v}[{at}:{max(1, n)}]",
            f"{v}[{at}{n % 2}::2]",
            f"{v}[{at}::{d.one((-1, 3))}]",
            f"jnp.split({v}, 2, {a})[{n % 2}]",
            f"jnp.unstack({v}, axis={a})[{n}]",
            f"jnp.pad({v}, {before})[{at}:-1]",
            f"jnp.tile({v}, {tuple(1 + (axis == a) for axis in range(rank))})",
            f"jnp.repeat({v}, 2, {a})",
            f"lax.dynamic_slice_in_dim({v}, j, {max(1, size - 2)}, {a})",
            f"lax.dynamic_index_in_dim({v}, j, {a}, False)",
            f"lax.dynamic_update_slice_in_dim({v}, {v}[{at}:1] * 2, j, {a})",
            f"{v}.at[{at}{n}].add(1.0)",
            f"jnp.concatenate([{v}[{at}{n}:], {v}[{at}:{n}]], {a})",
            f"jnp.stack([{shifted}], {a})",
        ]
    )


def reduced(d):
    v = d.value(2, 3)
    return f"{v}.{d.one(('sum', 'mean', 'max'))}({d.axis(v)})"


def index(d):
    """Integers: of the best positions, or made of other integers."""
    if d.chance(0.3):
        i = d.one(d.values(1, 2, kind="i"))
        return d.one(
            [
                f"({i} + 1) % 2",
                f"{i}[::-1]",
                f"jnp.roll({i}, 1, 0)",
                f"{i}.T",
                f"{i} + 0",
            ]
        )
    v = d.value(2, 3)
    a = d.axis(v)
    shape = [size if axis == a else 1 for axis, size in enumerate(d.shape(v))]
    v = f"{v} + {d.leaf(*shape)}"  # so that no two are equal
    return d.one(
        [
            f"jnp.argmax({v}, {a})",
            f"jnp.argmin({v}, {a})",
            f"jnp.argsort({v}, {a})",
            f"lax.top_k(jnp.moveaxis({v}, {a}, -1), 2)[1]",
        ]
    )


def pick(d):
    i = d.one(d.values(1, 2, kind="i"))
    w = d.value(1, 2, 3) if d.chance(0.5) else d.leaf(d.size(), d.size(), d.size())
    rows, size = d.shape(i)[0], d.shape(w)[0]
    return d.one(
        [
            *[f"{w}[{i}]"] * 3,
            f"{w}[:, {i}]",
            f"jnp.take({w}, {i}, axis=0, mode='clip')",
            f"jax.nn.one_hot({i}, {size}) @ {w}",
            f"jax.nn.one_hot({i}, {size})",
            f"({i}[:, None] == {i}[None]) * 1.0",
            f"jax.vmap(lambda w, i: w[i])({w}, {i})",
            f"{w}.at[{i}].add({w}[:1])",
            f"{w}.at[{i}].set(1.0)",
            f"{w}[jnp.arange({rows}), {i}]",
            f"jnp.take_along_axis({w}, {i}, {d.axis(i)})",
            f"jnp.take_along_axis({w}, {i}[..., None], {d.axis(w)})",
        ]
    )


def experts(d):
    """Kernels of an expert an input, which may be another one on the way back."""
    v, i = d.value(2), d.one(d.values(1, kind="i"))
    back = d.one([i, i, i, f"{i}[::-1]", f"({i} + 0)", d.one(d.values(1, kind="i"))])
    count, hidden, out = d.size(), d.size(), d.size()
    up = d.leaf(count, d.shape(v)[1], hidden)
    y = f"jnp.tanh(jnp.einsum('bd,bdh->bh', {v}, {up}[{i}]))"
    if d.chance(0.3):
        y = f"({y} + {d.leaf(count, hidden)}[{d.one([i, back])}])"
    if d.chance(0.3):
        y = d.one([f"{y}[::-1]", f"jnp.sort({y})", f"(lambda y: y - y.mean(0))({y})"])
    way = d.one([*["bh,bho->bo"] * 3, "bh,cho->bco", "bh,bho->o", "bh,cho->bo"])
    return f"jnp.einsum('{way}', {y}, {d.leaf(count, hidden, out)}[{back}])"


def loop(d):
    v, count, lax_scan = d.value(1, 2), d.one((2, 3)), "lax.scan(lambda c, w: "
    width, hidden, n = d.shape(v)[-1], d.size(), d.one((0, 1))
    up, down = d.leaf(count, width, hidden), d.leaf(count, hidden, width)
    both, layer = f"({up}, {down})", f"jnp.tanh(c @ {up}[n]) @ {down}"
    turned = d.one(["c * 2", "c[::-1]", f"c + {d.leaf(*d.shape(v))}"])
    rows = d.one(["jnp.cumsum(w, 0)", "w * 2", "jnp.tanh(w).sum(0)", "w[::-1]"])
    return d.one(
        [
            f"lax.fori_loop(0, {count}, lambda n, c: c + {layer}[n], {v})",
            f"lax.fori_loop(0, {count}, lambda n, c: c + {layer}[(n + 1) % 2], {v})",
            f"lax.fori_loop(0, j, lambda n, c: c + {layer}[n], {v})",
            f"{lax_scan}(c + jnp.tanh(c @ w[0]) @ w[1], c), {v}, {both})[{n}]",
            f"{lax_scan}(jnp.tanh(c @ w), c @ w), {v}, "
            f"{d.leaf(count, width, width)}, reverse={d.chance(0.5)})[{n}]",
            f"lax.cond(j > 0, lambda c: {turned}, lambda c: jnp.tanh(c), {v})",
            f"{lax_scan}(c, {rows}), {v}, {d.value(2, 3)})[1]",
        ]
    )


def groups(d):
    """Channels in groups: normed, mixed within groups, across them, or both."""
    v = d.value(1, 2)
    width, count = d.shape(v)[-1], d.one((2, 3))
    if width % count:
        return f"jnp.tanh({v} @ {d.leaf(width, 6)})"
    grid = f"{v}.reshape(*{v}.shape[:-1], {count}, -1)"
    inner = d.leaf(count, width // count, width // count)
    made = d.one(
        [
            f"{grid} / jnp.sqrt(1 + ({grid} ** 2).mean(-1, keepdims=True))",
            f"{grid} + jnp.einsum('...gc,gcd->...gd', {grid}, {inner})",
            f"{grid} + jnp.einsum('...gc,gh->...hc', {grid}, {d.leaf(count, count)})",
        ]
    )
    return f"({made}).reshape({v}.shape)"


def convolution(d):
    v = d.value(2, 3)
    width, count, out = d.shape(v)[-1], d.one((1, 1, 2, 3)), d.size()
    kernels = [n for n in d.values(3) if d.shape(n)[1] * count == width]
    kernel = d.one([*kernels, d.leaf(d.size(), max(width // count, 1), out)])
    x = v if len(d.shape(v)) == 3 else f"{v}[None]"
    return (
        f"lax.conv_general_dilated({x}, {kernel}, (1,), '{d.one(('SAME', 'VALID'))}', "
        f"dimension_numbers=('NWC', 'WIO', 'NWC'), feature_group_count={count})"
    )


def mapped(d):
    v, u = d.value(2, 3), d.value(2, 3)
    body = d.one(
        [
            "a * b.sum()",
            "a @ b",
            "a[jnp.argmax(b)]",
            "jnp.where(a > 0, a, b)",
            "lax.cumsum(a) * b",
        ]
    )
    return f"jax.vmap(lambda a, b: {body})({v}, {u})"


STEPS = {
    dense: 3, square: 2, product: 6, per_place: 3, binary: 5, outer: 1, unary: 2,
    by_position: 2.5, attention: 1, reshape: 3, shuffle: 1, transpose: 2, join: 2,
    cut: 3, reduced: 1.2, index: 2, pick: 3, experts: 2, loop: 2, groups: 2,
    convolution: 1.5, mapped: 1,
}  # fmt: skip


def random_program(generator, most_steps=10, family=None):
    """Draw a program, of a family or not; some have no output and prove nothing."""
    steps = {**STEPS, **program_families.FAMILIES.get(family, {})}
    d, makers = Draft(generator), list(steps)
    weights = np.array([*steps.values()]) / sum(steps.values())
    for _ in range(generator.integers(3, most_steps + 1)):
        code = makers[generator.choice(len(makers), p=weights)](d)
        if code is not None:
            d.add(code)
    outputs = []
    for name, _ in d.lines[::-1]:
        value = d.known[name]
        if len(outputs) < 4 and value.dtype.kind == "f" and value.size <= 64:
            weighed = f"({name} * {d.leaf(*value.shape)}).sum()"
            outputs.append(f"{name}.sum()" if d.chance(0.3) else weighed)
    return pruned(Program(tuple(d.lines), tuple(outputs), d.leaves, d.inputs))


def fault(program, draws=2):
    """Say what is wrong with the spec of a program; None if nothing is."""
    if not program.leaves:
        return None
    traced = trace(program, program.leaves, program.inputs)
    try:
        spec = infer_spec(program, program.leaves, program.inputs)
        find_taps(traced, spec)
    except Exception as error:  # noqa: BLE001 any is a fault
        return f"{type(error).__name__} {error}"
    parents = {name: label.parents for name, label in spec.labels.items()}
    for name, around in parents.items():
        if not all(set(parents[parent]) <= set(around) for parent in around):
            return f"nesting of {name} in {around}"

    def outputs(leaves):
        args = [leaves[path] for path in traced.paths]
        inputs = jax.tree.leaves(program.inputs)
        found = [
            np.array(interpreter.evaluate(traced, [*args, *batch]), float)
            for batch in (inputs, [*map(_coarse, inputs)])
        ]
        return np.nan_to_num(np.array(found), nan=1e5, posinf=1e6, neginf=-1e6)

    generator, expected = np.random.default_rng(0), outputs(program.leaves)
    for _ in range(draws):
        perms = {}
        for name, label in spec.labels.items():
            rows = np.broadcast_to(np.arange(label.size), spec.row_shape(name))
            perms[name] = rows if label.fixed else generator.permuted(rows, axis=-1)
        moved = {
            path: oracles.permuted(leaf, spec.axes[path], perms, parents)
            for path, leaf in program.leaves.items()
        }
        change = np.abs(outputs(moved) - expected) / (np.abs(expected) + 1)
        if change.max(initial=0) > TOLERANCE:
            return f"outputs change by {change.max():.1e}"
    return None


def check_programs(seed, numbers, family=None):
    """Draw programs and fail at the first with a fault."""
    with jax.numpy_rank_promotion("allow"), np.errstate(all="ignore"):
        for number in numbers:
            program = random_program(np.random.default_rng((seed, number)), 10, family)
            assert fault(program) is None, f"program {(seed, number)}\n{program}"


def _coarse(x):
    """Inputs of which many are equal, and none is zero."""
    return x if x.dtype.kind == "i" else np.floor(x) + 0.5


def smallest(program):
    """Make a program with a fault as small as it can be by leaving things out."""
    kind = fault(program).split()[0]

    def is_bad(other):
        try:
            return (fault(other) or "none").split()[0] == kind
        except Exception:  # noqa: BLE001 it may be no program any more
            return False

    while smaller := next(filter(is_bad, _smaller(program)), None):
        program = smaller
    return program


def _smaller(program):
    for n in range(len(program.outputs) if len(program.outputs) > 1 else 0):
        outputs = program.outputs[:n] + program.outputs[n + 1 :]
        yield pruned(Program(program.lines, outputs, program.leaves, program.inputs))
    for name, code in program.lines:
        for other in dict.fromkeys(re.findall(r"\b(?:[vp]\d+|x|z)\b", code)):
            lines = [(n, _put(c, name, other)) for n, c in program.lines if n != name]
            outputs = tuple(_put(c, name, other) for c in program.outputs)
            yield pruned(Program(tuple(lines), outputs, program.leaves, program.inputs))
        for pattern in (r"^jnp\.tanh\((.*)\)$", r"^[vp]\d+ \+ (.*)$"):
            shorter = re.sub(pattern, r"\1", code)
            if shorter != code:
                lines = [(n, shorter if n == name else c) for n, c in program.lines]
                yield pruned(
                    Program(
                        tuple(lines), program.outputs, program.leaves, program.inputs
                    )
                )


def _put(code, name, other):
    return re.sub(rf"\b{name}\b", other, code)
