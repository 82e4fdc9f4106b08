import gc
import os
import subprocess
import sys

import numpy as np

from jmudsc.compiled import cache_settings, kept

PROGRAM = """
import numpy as np
from jmudsc import cli
import os, sys
sys.argv = ["jmudsc", "--version"]
os.environ.update(cli.cache_settings(os.environ))
import jax
print(jax.jit(lambda x: x * 3 + 1)(np.arange(4.0, dtype=np.float32)).sum())
"""


def test_what_was_made_for_a_function_is_made_once():
    made = []

    def function():
        return None

    def make():
        made.append(0)
        return len(made)

    assert [kept(function, key, make) for key in ("a", "b", "a")] == [1, 2, 1]
    assert kept(lambda: None, "a", make) == 3


def test_it_goes_with_the_function_and_the_oldest_go_first():
    class Made:
        alive = 0

        def __init__(self):
            Made.alive += 1

        def __del__(self):
            Made.alive -= 1

    def function():
        return None

    for key in range(100):
        kept(function, key, Made)
    gc.collect()
    assert 0 < Made.alive < 50
    del function
    gc.collect()
    assert Made.alive == 0


def test_a_function_that_cannot_be_referred_to_weakly_has_nothing_kept():
    numbers = iter(range(2))
    bare = np.float32(1)
    assert [kept(bare, "a", lambda: next(numbers)) for _ in range(2)] == [0, 1]


def test_the_cache_is_where_the_user_has_caches_unless_told_otherwise(tmp_path):
    found = cache_settings({"XDG_CACHE_HOME": str(tmp_path)})
    folder = found["JAX_COMPILATION_CACHE_DIR"]
    assert folder.startswith(str(tmp_path / "jmudsc"))
    assert cache_settings({"JAX_COMPILATION_CACHE_DIR": "/elsewhere"}).keys() == {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    }


def programs_in(folder, **extra):
    environment = {n: x for n, x in os.environ.items() if "CACHE" not in n}
    environment |= {"XDG_CACHE_HOME": str(folder), **extra}
    command = [sys.executable, "-c", PROGRAM]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return {p.name for p in folder.rglob("*-cache")}


def test_a_second_process_compiles_nothing_new_and_the_cache_can_be_turned_off(
    tmp_path,
):
    first = programs_in(tmp_path)
    assert first
    assert programs_in(tmp_path) == first
    off = tmp_path / "off"
    off.mkdir()
    assert programs_in(off, JAX_ENABLE_COMPILATION_CACHE="false") == set()
