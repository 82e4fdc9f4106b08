import commands
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import jmudsc
from jmudsc.finetunes.run_soup import soup_of_run
from jmudsc.lazy import is_lazy, read_all

STEPS = (100, 200, 300, 1000)


def state(step):
    generator = np.random.default_rng(step)
    draw = lambda *shape: jnp.asarray(generator.normal(size=shape), jnp.float32)
    return {
        "params": {"Dense_0": {"kernel": draw(4, 3)}},
        "batch_stats": {"BatchNorm_0": {"mean": draw(3), "var": jnp.exp(draw(3))}},
        "opt_state": [{"count": jnp.int32(step), "mu": draw(4, 3)}],
        "step": jnp.int32(step),
    }


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    place = tmp_path_factory.mktemp("run")
    with ocp.CheckpointManager(place) as manager:
        for step in STEPS:
            manager.save(step, args=ocp.args.StandardSave(state(step)))
    return place


def kernel(result):
    return np.asarray(read_all(result.variables)["params"]["Dense_0"]["kernel"])


def mean(steps, weights=None):
    kernels = [np.asarray(state(s)["params"]["Dense_0"]["kernel"]) for s in steps]
    return np.average(kernels, axis=0, weights=weights)


def test_parameters_and_statistics_of_the_last_steps_are_averaged(run):
    result = soup_of_run(run, last=2)
    assert is_lazy(result.variables)
    assert set(result.variables) == {"params", "batch_stats"}
    np.testing.assert_allclose(kernel(result), mean([300, 1000]), rtol=1e-5, atol=1e-6)
    found = read_all(result.variables)["batch_stats"]["BatchNorm_0"]["var"]
    expected = [state(s)["batch_stats"]["BatchNorm_0"]["var"] for s in (300, 1000)]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)
    assert result.recipe["steps"] == [300, 1000]


def test_all_or_some_steps_are_taken_the_oldest_first(run):
    np.testing.assert_allclose(
        kernel(soup_of_run(run)), mean(STEPS), rtol=1e-5, atol=1e-6
    )
    result = soup_of_run(run, steps=[1000, 100], weights="ema", decay=0.75)
    expected = mean([100, 1000], [0.75, 0.25])
    np.testing.assert_allclose(kernel(result), expected, rtol=1e-5, atol=1e-6)
    result = soup_of_run(run, weights="wsm")
    weights = [0.5, 0.2071068, 0.1589186, 0.1339746]
    np.testing.assert_allclose(
        kernel(result), mean(STEPS, weights), rtol=1e-4, atol=1e-5
    )


def test_greedy_keeps_what_the_score_likes(run):
    goal = mean([200, 300])
    near = lambda v: -float(jnp.abs(v["params"]["Dense_0"]["kernel"] - goal).sum())
    result = soup_of_run(run, weights="greedy", score=near)
    assert result.recipe["kept"] == [1, 2]
    np.testing.assert_allclose(kernel(result), goal, rtol=1e-5, atol=1e-6)


def test_the_result_is_saved_as_a_checkpoint(run, tmp_path):
    jmudsc.save(tmp_path / "soup", soup_of_run(run, last=3))
    found = jmudsc.load(tmp_path / "soup", "params")
    np.testing.assert_allclose(
        found["Dense_0"]["kernel"], mean([200, 300, 1000]), rtol=1e-5, atol=1e-6
    )


def test_parameters_one_level_below_are_found_and_others_can_be_named(tmp_path):
    with ocp.CheckpointManager(tmp_path) as manager:
        for step in (1, 2):
            tree = {"model": state(step), "ema": {"w": state(step)["params"]}}
            manager.save(step, args=ocp.args.StandardSave(tree))
    expected = mean([1, 2])
    np.testing.assert_allclose(
        kernel(soup_of_run(tmp_path)), expected, rtol=1e-5, atol=1e-6
    )
    found = read_all(soup_of_run(tmp_path, subtree="ema/w").variables)
    np.testing.assert_allclose(
        found["Dense_0"]["kernel"], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"last": 5}, "soup: expected last to be from 1 to 4, the number of steps in"),
        ({"last": 2, "steps": [100]}, "soup: expected last or steps, got both."),
        (
            {"steps": [100, 150]},
            "soup: expected different ones of the steps [100, 200, 300, 1000] in",
        ),
        (
            {"weights": "median"},
            'weights: expected "mean", "ema" or "wsm", got \'median\'',
        ),
    ],
)
def test_what_is_wrong_is_said(run, options, said):
    with pytest.raises(ValueError, match="expected") as error:
        soup_of_run(run, **options)
    assert said in str(error.value)


def test_a_directory_without_steps_or_parameters_is_told(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="soup: expected the directory of a run"
    ):
        soup_of_run(tmp_path / "none")
    (tmp_path / "logs").mkdir()
    with pytest.raises(ValueError, match="soup: expected directories named by steps"):
        soup_of_run(tmp_path)
    with ocp.CheckpointManager(tmp_path / "run") as manager:
        manager.save(1, args=ocp.args.StandardSave({"weights": jnp.ones(3)}))
    with pytest.raises(ValueError, match="expected params in the checkpoints") as error:
        soup_of_run(tmp_path / "run")
    assert "got ['weights']" in str(error.value)


def test_the_command_writes_the_average_of_the_last_steps(
    run, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "soup.npz"
    commands.run(monkeypatch, "soup", run, "--out", out, "--last", 2)
    expected = jmudsc.load(out, "params")["Dense_0"]["kernel"]
    np.testing.assert_allclose(expected, mean([300, 1000]), rtol=1e-5, atol=1e-6)
    printed = capsys.readouterr().out
    assert printed == f"Averaged the steps 300, 1000.\nWrote {out}\n"


@pytest.mark.parametrize("decay", ["linear", "minus-sqrt"])
def test_the_command_knows_the_decays(decay, run, tmp_path, monkeypatch):
    out = tmp_path / "soup"
    options = ("--weights", "wsm", "--decay", decay)
    commands.run(monkeypatch, "soup", run, "--out", out, *options)
    found = jmudsc.load(out, "params")["Dense_0"]["kernel"]
    expected = kernel(soup_of_run(run, weights="wsm", decay=decay))
    np.testing.assert_array_equal(found, expected)


def test_the_command_judges_by_a_function_of_the_directory(
    run, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    code = (
        "def near(v):\n    return -float(abs(v['params']['Dense_0']['kernel']).sum())"
    )
    (tmp_path / "soup_judge.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    options = ("--weights", "greedy", "--score", "soup_judge:near")
    commands.run(monkeypatch, "soup", run, "--out", "kept", *options)
    from soup_judge import near

    chosen = soup_of_run(run, weights="greedy", score=near)
    found = jmudsc.load(tmp_path / "kept", "params")["Dense_0"]["kernel"]
    np.testing.assert_array_equal(found, kernel(chosen))


def test_the_command_says_what_steps_there_are(run, tmp_path, monkeypatch):
    said = commands.fails(monkeypatch, "soup", run, "--out", "soup", "--steps", 7)
    assert said.startswith("jmudsc: soup: ")
    assert "100" in said
