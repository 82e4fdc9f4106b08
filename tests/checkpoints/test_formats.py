"""Safetensors, npz and msgpack: read and written as their own libraries do."""

import json
import os
import pickle
import re
import struct
import zipfile

import checkpoint_writers as writers
import flax.serialization
import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
import safetensors.flax
from flax import nnx

import jmudsc
from jmudsc.checkpoints.load import load, load_shapes
from jmudsc.checkpoints.save import save_variables
from jmudsc.merging.save_result import load_provenance, save

ENDINGS = ["safetensors", "npz", "msgpack"]


def tree():
    """Leaves of many types and shapes, in dicts only."""
    return {
        "params": {
            "Dense_0": {
                "kernel": jnp.arange(12.0).reshape(3, 4).T / 7,
                "bias": (jnp.arange(4.0) / 3).astype(jnp.bfloat16),
            },
            "scale": jnp.full((), -0.0),
            "half": jnp.asarray([jnp.nan, jnp.inf], jnp.float16),
            "square": (jnp.arange(9.0).reshape(3, 3) / 7).astype(jnp.bfloat16),
            "none": jnp.ones((0, 3)),
        },
        "masks": {"keep": jnp.array([True, False]), "all": jnp.array(True)},
        "counts": {"seen": jnp.arange(3, dtype=jnp.int8), "step": jnp.int32(4)},
        "wave": jnp.array([1 + 2j], jnp.complex64),
    }


def assert_same(found, expected):
    """Same structure, and every leaf the same dtype, shape and bytes."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, two in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        one, two = np.asarray(one), np.asarray(two)
        assert (one.dtype, one.shape) == (two.dtype, two.shape)
        assert one.tobytes() == two.tobytes()


def sentence(text):
    return f"^{re.escape(text)}$"


def names_in(folder):
    return sorted(x.name for x in folder.iterdir())


# How training code writes files, with no word of jmudsc.


def flat(variables):
    leaves = jax.tree.leaves_with_path(variables)
    return {jax.tree_util.keystr(k, simple=True, separator="/"): x for k, x in leaves}


def as_safetensors(path, variables):
    safetensors.flax.save_file(flat(variables), path)


def as_npz(path, variables):
    np.savez_compressed(path, **flat(variables))


def as_msgpack(path, variables):
    path.write_bytes(flax.serialization.to_bytes(variables))


FOREIGN = {"safetensors": as_safetensors, "npz": as_npz, "msgpack": as_msgpack}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_others_write_is_read_bit_for_bit(ending, tmp_path):
    path = tmp_path / f"run.{ending}"
    FOREIGN[ending](path, tree())
    assert_same(load(path), tree())
    assert_same(load(path, "params/Dense_0"), tree()["params"]["Dense_0"])
    assert_same(
        load(path, ("masks", "params/half")),
        {"masks": tree()["masks"], "half": tree()["params"]["half"]},
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_written_is_read_back_bit_for_bit_also_by_others(ending, tmp_path):
    path = save_variables(tmp_path / f"run.{ending}", tree())
    assert names_in(tmp_path) == [f"run.{ending}"]
    assert_same(load(path), tree())
    if ending == "safetensors":
        assert_same(safetensors.flax.load_file(path), flat(tree()))
    elif ending == "npz":
        found = dict(np.load(path, allow_pickle=False))
        typed = {
            k: x.view(jnp.bfloat16) if x.dtype == "V2" else x for k, x in found.items()
        }
        assert_same(typed, flat(tree()))
    else:
        assert_same(flax.serialization.from_bytes(tree(), path.read_bytes()), tree())


@pytest.mark.parametrize("ending", ["", *ENDINGS])
def test_shapes_are_those_of_what_is_loaded(ending, tmp_path):
    variables = {"w": np.ones((3, 2)), "b": jnp.ones(3, jnp.bfloat16), "n": np.int64(3)}
    path = save_variables(tmp_path / f"run.{ending}".rstrip("."), variables)
    loaded = load(path)
    assert load_shapes(path) == jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), loaded
    )


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_shapes_are_read_without_the_arrays(ending, tmp_path):
    path = save_variables(tmp_path / f"run.{ending}", {"w": jnp.arange(4096.0)})
    data = bytearray(path.read_bytes())
    data[1000:9000] = bytes(8000)
    path.write_bytes(data)
    assert load_shapes(path)["w"].shape == (4096,)


def test_shards_are_read_by_their_index(tmp_path):
    leaves = flat(tree())
    shards = {
        name: f"model-{i % 2 + 1:05}-of-00002.safetensors"
        for i, name in enumerate(leaves)
    }
    for shard in set(shards.values()):
        part = {name: leaves[name] for name in leaves if shards[name] == shard}
        safetensors.flax.save_file(part, tmp_path / shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    assert_same(load(tmp_path), tree())
    assert_same(load(index), tree())
    assert_same(load(tmp_path, "masks"), tree()["masks"])
    shape = jax.ShapeDtypeStruct((3, 3), jnp.bfloat16)
    assert load_shapes(tmp_path)["params"]["square"] == shape


def test_a_directory_of_one_safetensors_file_is_that_file(tmp_path):
    as_safetensors(tmp_path / "model.safetensors", tree())
    (tmp_path / "config.json").write_text("{}")
    assert_same(load(tmp_path), tree())


def test_files_of_flax_without_an_ending_are_known_by_their_first_bytes(tmp_path):
    as_msgpack(tmp_path / "checkpoint_7", tree())
    assert_same(load(tmp_path / "checkpoint_7"), tree())


def test_names_are_split_at_a_separator(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, **{"a.b/c": np.float32(1), "a.d": np.float32(2)})
    assert load(path) == {"a.b": {"c": 1}, "a.d": 2}
    assert load(path, separator=".") == {"a": {"b/c": 1, "d": 2}}
    assert load(path, separator="") == {"a.b/c": 1, "a.d": 2}
    orbax = save_variables(tmp_path / "run", {"a.d": np.float32(2)})
    assert load(orbax, separator=".") == {"a": {"d": 2}}


def test_leaves_are_renamed_after_the_subtree_is_taken(tmp_path):
    path = tmp_path / "run.npz"
    names = ["net/enc/0/weight", "net/enc/1/weight", "net/head/weight", "net/steps"]
    np.savez(path, **{name: np.float32(i) for i, name in enumerate(names)})
    found = load(
        path,
        "net",
        rename={
            "steps": None,
            "enc/*/weight": "Dense_*/kernel",
            "*/weight": "*/kernel",
        },
    )
    kernels = {"Dense_0": 0, "Dense_1": 1, "head": 2}
    assert found == {name: {"kernel": number} for name, number in kernels.items()}


@pytest.mark.parametrize("write", [writers.standard, save_variables])
def test_what_is_not_renamed_keeps_its_place_in_lists(write, tmp_path):
    variables = {"layers": [{"w": jnp.zeros(1)}, {"w": jnp.ones(1)}], "a": jnp.ones(2)}
    path = write(tmp_path / "run", variables)
    found = load(path, rename={"layers/*/w": "layers/*/kernel", "a": "b/c"})
    layers = [{"kernel": jnp.zeros(1)}, {"kernel": jnp.ones(1)}]
    assert_same(found, {"layers": layers, "b": {"c": jnp.ones(2)}})


# Merges


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_merge_comes_back_with_its_tree_and_its_record(ending, tmp_path):
    variables = {"mlp/~/linear.0": {"w": jnp.ones(2)}, "layers": [jnp.zeros(1), tree()]}
    if ending != "npz":
        variables["small"] = jnp.ones(3, jnp.bfloat16)
    result = writers.result_of(variables, recipe={"method": "average"})
    path = save(tmp_path / f"merged.{ending}", result, notes={"report.md": "# Merge"})
    assert_same(load(path), variables)
    assert_same(load(path, "layers/1/masks"), tree()["masks"])
    assert load_provenance(path)["recipe"] == {"method": "average"}
    assert list(load_provenance(path)["assignment"]) == ["P_0"]
    assert names_in(tmp_path) == [path.name, f"{path.name}.jmudsc"]
    assert (tmp_path / f"{path.name}.jmudsc" / "report.md").read_text() == "# Merge"
    save(path, writers.result_of({"w": jnp.ones(1)}), overwrite=True)
    assert_same(load(path), {"w": jnp.ones(1)})
    assert names_in(tmp_path) == [path.name, f"{path.name}.jmudsc"]


def test_a_merged_nnx_state_has_the_names_of_its_variables(tmp_path):
    state = nnx.state(writers.Net(nnx.Rngs(0)))
    path = save(tmp_path / "merged.safetensors", writers.result_of(state))
    assert "linear/kernel" in safetensors.flax.load_file(path)
    assert_same(load(path), nnx.to_pure_dict(state))


def test_a_merge_without_its_record_is_a_file_as_any_other(tmp_path):
    path = save(tmp_path / "a.npz", writers.result_of({"a": {"b": jnp.ones(1)}}))
    moved = path.rename(tmp_path / "b.npz")
    assert_same(load(moved), {"a": {"b": jnp.ones(1)}})
    expected = (
        f"{moved}: has no record of a merge, needed a checkpoint that jmudsc saved; "
        "load its arrays with jmudsc.load(path)."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_provenance(moved)
    with pytest.raises(FileExistsError, match="was not saved by jmudsc"):
        save(moved, writers.result_of({"w": jnp.ones(1)}), overwrite=True)


def test_a_changed_leaf_of_a_merge_is_named(tmp_path):
    variables = {"a": jnp.ones(2), "b": jnp.ones(2)}
    path = save(tmp_path / "merged.safetensors", writers.result_of(variables))
    safetensors.flax.save_file({"a": jnp.ones(2), "b": jnp.zeros(2)}, path)
    expected = (
        f"{path}: 1 of 2 leaves are not what jmudsc saved, needed all unchanged; copy "
        "the checkpoint again:\n  b"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    assert_same(load(path, "a"), jnp.ones(2))


# Whatever is wrong has a sentence of its own.


@pytest.fixture
def files(tmp_path):
    for ending, write in FOREIGN.items():
        write(tmp_path / f"run.{ending}", {"a": jnp.ones((8, 8)), "b": jnp.zeros(3)})
    return tmp_path


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kept", [0.5, 0.05])
def test_a_cut_file(ending, kept, files):
    path = files / f"run.{ending}"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    whole = f"needed a whole {ending} file"
    with pytest.raises(
        ValueError, match=f"^{re.escape(str(path))}: .*{whole}.*again.$"
    ):
        load(path)


def test_a_flipped_bit_in_an_npz_file(tmp_path):
    path = save_variables(tmp_path / "run.npz", {"w": jnp.arange(4096.0)})
    data = bytearray(path.read_bytes())
    data[8000] ^= 1
    path.write_bytes(data)
    expected = (
        f"{path}: cannot be read (Bad CRC-32 for file 'w.npy'), needed a whole npz "
        "file; copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


@pytest.mark.parametrize(
    ("ending", "content", "begins"),
    [
        ("npz", "run.safetensors", "begins as a safetensors file"),
        ("safetensors", "run.npz", "begins as an npz file"),
        ("safetensors", "run.msgpack", "begins as a msgpack file"),
        ("msgpack", None, "does not begin as one"),
    ],
)
def test_a_file_of_another_format_than_its_ending(ending, content, begins, files):
    path = files / f"other.{ending}"
    path.write_bytes((files / content).read_bytes() if content else b"hello")
    expected = (
        f"{path}: is no {ending} file, it {begins}, needed what its ending says; "
        "rename it or copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def test_objects_are_never_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "run.npz"
    np.savez(path, w=np.ones(2), o=np.array([Trap()], object))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("data.pkl", pickle.dumps(Trap()))
    expected = (
        f"{path}: 2 of 3 members are Python objects, needed arrays of numbers; nothing "
        "is ever unpickled, save them as numbers:\n  o.npy\n  data.pkl"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    array = msgpack.packb(((1,), "O", pickle.dumps(Trap())))
    path = tmp_path / "run.msgpack"
    path.write_bytes(msgpack.packb({"o": msgpack.ExtType(1, array)}))
    with pytest.raises(ValueError, match="cannot create an OBJECT array"):
        load(path)
    assert not (tmp_path / "trapped").exists()


def test_types_that_a_file_does_not_tell(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, w=np.ones(2), tiny=np.ones(2, jnp.float8_e4m3fn))
    expected = (
        f"{path}: 1 of 2 arrays are of types that the file does not tell, needed "
        "numpy's own or bfloat16; save them as such:\n  tiny.npy: |V1"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    path = tmp_path / "run.safetensors"
    safetensors.flax.save_file({"tiny": jnp.ones(2, jnp.float8_e4m3fn)}, path)
    expected = (
        f"{path}: 1 of 1 arrays have types that cannot be read, needed BOOL, BF16, "
        "C64, F16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64; convert them:\n"
        "  tiny: F8_E4M3"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
@pytest.mark.parametrize("dtype", ["float8_e4m3b11fnuz", "float8_e5m2", "int4"])
def test_types_that_a_format_has_not_are_refused_on_writing(ending, dtype, tmp_path):
    variables = {"w": jnp.ones(2), "tiny": jnp.ones(2, dtype)}
    expected = (
        f"variables: {ending} cannot save 1 of 2 leaves, needed arrays of numbers; "
        f"remove or convert them:\n  tiny: has dtype {dtype}"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save(tmp_path / f"merged.{ending}", writers.result_of(variables))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_array_without_a_name_is_refused_on_writing(ending, tmp_path):
    expected = (
        f"variables: are a single array, needed a name for it in a {ending} file; save "
        '{"name": array}.'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        save_variables(tmp_path / f"run.{ending}", jnp.ones(3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lazy", [False, True])
def test_npz_arrays_of_another_byte_order(lazy, tmp_path):
    np.savez(tmp_path / "run.npz", w=np.arange(3, dtype=">f4"))
    found = load(tmp_path / "run.npz", lazy=lazy)
    assert found["w"].dtype == np.dtype("=f4")
    np.testing.assert_array_equal(np.asarray(found["w"]), [0, 1, 2])


def test_two_members_of_one_name(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, a=np.zeros(1), b=np.ones(1))
    path.write_bytes(path.read_bytes().replace(b"b.npy", b"a.npy"))
    expected = (
        f'{path}: cannot be read (two members are named "a.npy"), needed a whole npz '
        "file; copy it again."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)


def test_a_msgpack_file_of_something_else(tmp_path):
    path = tmp_path / "run.msgpack"
    path.write_bytes(msgpack.packb({"a": b"raw", "b": 1.5}))
    expected = (
        f"{path}: 1 of 2 leaves are no arrays, needed arrays and numbers; leave them "
        "out:\n  a: bytes"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(path)
    path.write_bytes(flax.serialization.msgpack_serialize({"name": "vit", "w": 1.0}))
    with pytest.raises(ValueError, match="leaf \"name\" is 'vit', needed numbers"):
        load(path)
    expected = (
        f"{path}: 1 of 2 leaves are text, needed numbers; name the subtree to load, "
        'for instance subtree="params":\n  "name"'
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load_shapes(path)


def test_a_url_of_a_file():
    expected = (
        "gs://b/run.npz: is a URL, needed a file of a local file system; copy it here."
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load("gs://b/run.npz")


def test_several_safetensors_files_without_an_index(tmp_path):
    for name in ("a", "b"):
        as_safetensors(tmp_path / f"{name}.safetensors", {"w": jnp.ones(1)})
    expected = (
        f"{tmp_path}: holds 2 safetensors files and no index of them, needed one; give "
        "one of:\n  a.safetensors\n  b.safetensors"
    )
    with pytest.raises(ValueError, match=sentence(expected)):
        load(tmp_path)


@pytest.mark.parametrize(
    ("content", "rest"),
    [
        (
            [],
            'is no index of safetensors files, needed JSON with "weight_map", array '
            "name -> file name; copy it again.",
        ),
        (
            {"w": "../w.safetensors"},
            "names 1 files that are not beside it, needed plain file names:\n"
            "  ../w.safetensors",
        ),
        (
            {"w": "a.safetensors", "v": "b.safetensors"},
            "1 of 2 files are missing, needed all beside it; copy them again:\n"
            "  b.safetensors",
        ),
        (
            {"w": "a.safetensors", "v": "a.safetensors"},
            "1 of 2 arrays are not in the files it names for them, needed all; copy "
            "the checkpoint again:\n  v: not in a.safetensors",
        ),
    ],
    ids=["empty", "elsewhere", "missing", "lost"],
)
def test_an_index_that_is_wrong(content, rest, tmp_path):
    as_safetensors(tmp_path / "a.safetensors", {"w": jnp.ones(1)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": content}))
    with pytest.raises(ValueError, match=sentence(f"{index}: {rest}")):
        load(tmp_path)


@pytest.mark.parametrize(
    ("rename", "rest"),
    [
        (
            {"a/wieght": "b", "*": "*"},
            '1 of 2 patterns of rename match no leaf:\n  "a/wieght"; did you mean '
            '"a/weight"?\nA pattern is of whole leaf paths, as the rules before it '
            "leave them.",
        ),
        (
            {"a/*": "c", "*/bias": "*"},
            'rename must be corrected:\n  "a/*" has 1 "*" and "c" 0, needed as many',
        ),
        (
            {"a/*": "*", "b/*": "*"},
            "1 names would be of two leaves or more, needed one leaf each; correct "
            "rename or separator:\n  weight: a/weight and b/weight",
        ),
        (
            {"a/weight": "b"},
            "1 leaves lie inside another leaf, needed names that nest; rename some, or "
            'keep names whole with separator="":\n  b/weight in b',
        ),
    ],
    ids=["unmatched", "stars", "twice", "inside"],
)
def test_a_rename_that_cannot_be(rename, rest, tmp_path):
    leaves = {name: np.ones(1) for name in ("a/weight", "a/bias", "b/weight")}
    np.savez(tmp_path / "run.npz", **leaves)
    with pytest.raises(ValueError, match=sentence(f"{tmp_path}/run.npz: {rest}")):
        load(tmp_path / "run.npz", rename=rename)


def test_names_joined_by_dots_are_advised_on(tmp_path):
    path = tmp_path / "run.npz"
    np.savez(path, **{"net.w": np.ones(1)})
    advice = re.escape('\nNames have "." here and no "/"; pass separator=".".')
    with pytest.raises(ValueError, match=f"{advice}$"):
        load(path, rename={"net/*": "*"})
    with pytest.raises(ValueError, match=f"{advice}$"):
        load(path, "net")
    assert load(path, "net", separator=".") == {"w": 1}


def test_a_header_that_lies_is_one_sentence(tmp_path):
    path = tmp_path / "run.safetensors"
    header = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,8]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    with pytest.raises(
        ValueError, match=r"cannot be read .*, needed a whole safetensors"
    ):
        jmudsc.load(path)
