"""Every format by the same laws: what it can hold comes back, all else is refused."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import checkpoint_writers as writers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from checkpoint_checks import assert_same, names_in, sentence

from jmudsc.checkpoints.dtypes import check_savable
from jmudsc.checkpoints.formats import (
    ending_of,
    endings,
    find,
    format_at,
    format_of,
    FORMATS,
)
from jmudsc.checkpoints.load import load, load_shapes, open_variables
from jmudsc.checkpoints.save import save_variables
from jmudsc.lazy import in_memory, LazyArray, read_all
from jmudsc.merging.save_result import save

NAMES = [row.name for row in FORMATS]
ROWS = dict(zip(NAMES, FORMATS, strict=True))
FILES = [row.name for row in FORMATS if row.endings]

# All types of numpy and of JAX that are numbers.
NUMPY = [np.dtype(x) for x in "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16".split()]
ADDED = [
    np.dtype(x)
    for x in vars(ml_dtypes).values()
    if isinstance(x, type) and issubclass(x, np.generic)
]
DTYPES = [*NUMPY, *ADDED]


def path_of(name, folder, stem="run"):
    return folder / f"{stem}{''.join(ROWS[name].endings[:1])}"


def some(dtype):
    """Values of a type; where zero has a sign or there are nans, these too."""
    kind = np.dtype(dtype).kind
    if kind in "fc":
        return np.array([[0.0, -0.0, np.nan], [np.inf, 1 / 3, -2]], dtype)
    return np.array([[0, 1, 0], [1, 1, 0]]).astype(dtype)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_every_type_that_a_format_holds_comes_back_bit_for_bit(name, lazy, tmp_path):
    tree = {str(x): some(x) for x in DTYPES if ROWS[name].holds(x)}
    assert {"bool", "int32", "float32", "bfloat16", "float16"} <= tree.keys()
    fetch = lambda leaf: lambda names: dict.fromkeys(names, leaf)
    given = {k: LazyArray(k, x.shape, x.dtype, fetch(x)) for k, x in tree.items()}
    path = save_variables(path_of(name, tmp_path), given if lazy else tree)
    stored = open_variables(path)
    assert stored.format.name == name
    assert_same(read_all(stored.variables), tree)
    assert {k: x.dtype for k, x in stored.variables.items()} == {
        k: x.dtype for k, x in tree.items()
    }


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, str(x)) for name in NAMES for x in DTYPES if not ROWS[name].holds(x)],
)
def test_a_type_that_a_format_does_not_hold_is_refused(name, dtype, tmp_path):
    expected = (
        f"variables: expected leaves that {name} can hold, got 1 of 2 that it "
        f"cannot. Remove, rename or convert them:\n  tiny: has dtype {dtype}"
    )
    variables = {"w": jnp.ones(2), "tiny": np.zeros(2, dtype)}
    with pytest.raises(ValueError, match=sentence(expected)):
        save_variables(path_of(name, tmp_path), variables)
    assert not list(tmp_path.iterdir())


# Names that mean something to some format, or that two leaves may come to have.
NAMED = [
    {"__metadata__": 1},
    {"a": {"__metadata__": 1}},
    {"a\0b": 1},
    {"\ud800": 1},
    {"n" * 70000: 1},
    {"a": 1, "a.npy": 2, "a.npy.npy": 3},
    {"a": {"b": 1}, "a.b": 2},
    {"a": {"b.c": 1}, "a.b": {"c": 2}},
    {"__msgpack_chunked_array__": 1},
    {"a": {"__msgpack_chunked_array__": {"b": 1}}},
    {"é": 1, "e\u0301": 2, " ": 3, "'": 4, '"': 5, "\n": 6, "\\": 7, "%2F": 8},
    {"/a": 1, "b/": {"c": 2}, "d//e": 3, "/": 4},
    {".": 1, "..": {"..": 2}, "../a": 3, "~": 4},
    {"_METADATA": 1, "d": 2, "jmudsc": 3, "0": 4, "manifest.ocdbt": 5},
    {"": 1},
    {"a": {"": 1}},
    {"w": {"value": 1}, "v": {"value": 2}},
]


@pytest.mark.parametrize("number", range(len(NAMED)))
@pytest.mark.parametrize("name", NAMES)
def test_a_tree_is_refused_before_it_is_written_or_comes_back(name, number, tmp_path):
    tree = jax.tree.map(lambda n: jnp.full(2, n), NAMED[number])
    path = path_of(name, tmp_path)
    try:
        check_savable(tree, ROWS[name])
    except ValueError as error:
        with pytest.raises(ValueError, match=sentence(str(error))):
            save(path, writers.result_of(tree))
        assert not list(tmp_path.iterdir())
        return
    assert_same(load(save(path, writers.result_of(tree))), tree)


REFUSED = {
    ("orbax", 6): 'a.b: is "a.b" in orbax, and so is a/b',
    ("safetensors", 0): "has the name that such a file has for its metadata",
    ("npz", 2): "has a zero byte in its name",
    ("orbax", 11): "d//e: has a key or a part of one that is empty",
    ("orbax", 4): "has a name of more than 65000 bytes",
    ("npz", 4): "has a name of more than 65531 bytes",
    ("msgpack", 8): 'has a key "__msgpack_chunked_array__", which Flax has for itself',
    ("npz", 3): "has a name that is no Unicode text",
}


@pytest.mark.parametrize(("name", "number"), REFUSED)
def test_what_is_wrong_with_a_name_is_told(name, number):
    with pytest.raises(ValueError, match=re.escape(REFUSED[name, number])):
        check_savable(NAMED[number], ROWS[name])


@pytest.mark.parametrize("name", NAMES)
def test_arrays_without_elements_are_held_or_refused(name, tmp_path):
    tree = {"w": jnp.ones(2), "none": jnp.ones((0, 3))}
    path = path_of(name, tmp_path)
    if ROWS[name].empty_arrays:
        assert_same(load(save_variables(path, tree)), tree)
        return
    with pytest.raises(ValueError, match=r"none: has shape \(0, 3\), which has no"):
        save_variables(path, tree)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_an_array_without_a_name_is_refused_where_names_are_needed(name, tmp_path):
    expected = (
        f"variables: expected names for what is in a file of {name}, got a single "
        'array. Save {"name": array}.'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save_variables(path_of(name, tmp_path), jnp.ones(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_its_own_library_writes_what_is_read_and_reads_what_is_written(name, tmp_path):
    tree = writers.dicts_only()
    write, read = writers.LIBRARIES[name]
    theirs, ours = (path_of(name, tmp_path, stem) for stem in ("theirs", "ours"))
    write(theirs, tree)
    assert_same(load(theirs), tree)
    assert_same(load(theirs, "params/Dense_0"), tree["params"]["Dense_0"])
    both = {"masks": tree["masks"], "half": tree["params"]["half"]}
    assert_same(load(theirs, ("masks", "params/half")), both)
    save_variables(ours, tree)
    assert names_in(tmp_path) == sorted([theirs.name, ours.name])
    assert_same(read(ours, tree), tree)
    assert_same(load(ours), tree)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_are_those_of_what_is_loaded(name, tmp_path):
    variables = {"w": np.ones((3, 2)), "b": jnp.ones(3, jnp.bfloat16), "n": np.int64(3)}
    path = save_variables(path_of(name, tmp_path), variables)
    assert load_shapes(path) == jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), load(path)
    )


@pytest.mark.parametrize("name", [name for name in FILES if ROWS[name].by_leaf])
def test_shapes_are_read_without_the_arrays(name, tmp_path):
    path = save_variables(path_of(name, tmp_path), {"w": jnp.arange(4096.0)})
    data = bytearray(path.read_bytes())
    data[1000:9000] = bytes(8000)
    path.write_bytes(data)
    assert load_shapes(path)["w"].shape == (4096,)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_known_by_its_first_bytes_whatever_it_is_called(name, tmp_path):
    path = save_variables(path_of(name, tmp_path), writers.dicts_only())
    bare = path.rename(tmp_path / "checkpoint_7")
    assert format_at(find(bare)) is ROWS[name]
    assert_same(load(bare), writers.dicts_only())


@pytest.mark.parametrize(
    ("name", "meant"), [(x, y) for x in [*FILES, None] for y in FILES if x != y]
)
def test_a_file_of_another_format_than_its_ending(name, meant, tmp_path):
    path = path_of(meant, tmp_path)
    if name:
        save_variables(path_of(name, tmp_path), {"a": jnp.ones(2)}).rename(path)
    else:
        path.write_bytes(b"hello")
    begins = f"begins as that of {name}" if name else "begins as none does"
    expected = (
        f"{path}: expected a file of {meant} by its ending, got one that {begins}. "
        "Rename it or copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


def test_a_file_of_no_format(tmp_path):
    file = tmp_path / "model.pt"
    file.write_bytes(b"hello")
    expected = (
        f"{file}: expected {', '.join(endings())} or the directory of an orbax "
        "checkpoint, got a file of another format. Convert it where it was made; "
        "nothing is ever unpickled."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(file)


# How files begin that h5py, onnx, pickle, llama.cpp and numpy write.
KNOWN = {
    "HDF5, as h5py and Keras write it": b"\x89HDF\r\n\x1a\n\0\0\0\0\0\x08\x08\0",
    "ONNX": b"\x08\x09\x12\x07pytorch",
    "pickle, as PyTorch once wrote it": b"\x80\x02}q\x00.",
    "GGUF": b"GGUF\3\0\0\0",
    "npy, a single array": b"\x93NUMPY\1\0v\0",
}


@pytest.mark.parametrize("kind", KNOWN)
@pytest.mark.parametrize("ending", ["", ".npz"])
def test_a_file_of_a_format_that_is_not_read_is_said_to_be_that(kind, ending, tmp_path):
    file = tmp_path / f"model{ending}"
    file.write_bytes(KNOWN[kind])
    expected = f"got one that begins as {kind}." if ending else f"got a file of {kind}."
    with pytest.raises(ValueError, match=re.escape(expected)):
        load(file)


@pytest.mark.parametrize("kept", [0.02, 0.05, 0.5, 0.999])
@pytest.mark.parametrize("name", FILES)
def test_a_cut_file_is_one_sentence(name, kept, tmp_path):
    path = path_of(name, tmp_path)
    writers.LIBRARIES[name][0](path, {"a": jnp.ones((80, 8)), "b": jnp.zeros(3)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    start = re.escape(f"{path}: expected a whole {name} file")
    with pytest.raises(
        ValueError, match=rf"^{start}.*, got one .* \(.*\)\. Copy it again\.$"
    ):
        load(path)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_where_it_could_not_be_written(name, tmp_path):
    path = path_of(name, tmp_path, "x" * 230)
    start = re.escape(f"{path}: expected room and the right to write, got an error (")
    end = re.escape("). Make room or choose another path; nothing was left there.")
    with pytest.raises(ValueError, match=f"^{start}.*File name too long.*{end}$"):
        save_variables(path, {"w": jnp.ones(2)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_read_back_as_it_was_is_not_kept(name, tmp_path, monkeypatch):
    write = ROWS[name].write

    def write_another(path, tree):
        write(path, in_memory(jax.tree.map(lambda leaf: leaf.read() + 1, tree)))

    monkeypatch.setattr("jmudsc.checkpoints.save.format_of", lambda path: broken)
    broken = dataclasses.replace(ROWS[name], write=write_another)
    path = path_of(name, tmp_path)
    expected = (
        f"{path}: expected to read back what was written, got 1 of 1 leaves changed. "
        "Save in another format:\n  w"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save_variables(path, {"w": jnp.ones(2)})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", FILES)
def test_a_url_of_a_file(name):
    path = f"gs://b/run{ROWS[name].endings[0]}"
    expected = (
        f"{path}: expected a file system that is installed, got one without its "
        "package: Please install gcsfs to access Google Storage. Install that, or copy "
        "the checkpoint here."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


@pytest.mark.parametrize("name", [name for name in NAMES if ROWS[name].package])
def test_a_package_that_is_not_installed_is_named(name, tmp_path, monkeypatch):
    path = save_variables(path_of(name, tmp_path), {"w": jnp.ones(2)})
    package, module = ROWS[name].package
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda x: None if x == module else find_spec(x)
    )
    expected = (
        f"expected the package {package} for {name}, got none. Run: pip install "
        f"{package}"
    )
    with pytest.raises(ModuleNotFoundError, match=sentence(f"{path}: {expected}")):
        load(path)
    other = path_of(name, tmp_path, "other")
    with pytest.raises(ModuleNotFoundError, match=sentence(f"{other}: {expected}")):
        save_variables(other, {"w": jnp.ones(2)})


def test_no_two_formats_have_one_name_or_ending_or_begin_alike(tmp_path):
    assert endings()[:3] == [".safetensors", ".npz", ".msgpack"]
    assert len(set(endings())) == len(endings())
    assert len(set(NAMES)) == len(NAMES)
    for name in FILES:
        path = save_variables(path_of(name, tmp_path), writers.dicts_only())
        assert [row.name for row in FORMATS if row.begins(path.read_bytes()[:16])] == [
            name
        ]
        assert format_of(path) is ROWS[name]
        assert ending_of(path) in ROWS[name].endings


def test_the_documents_have_a_row_for_every_ending():
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    for name in FILES:
        for ending in ROWS[name].endings:
            assert re.search(rf"^\| `{re.escape(ending)}`.*\|$", text, re.MULTILINE)
