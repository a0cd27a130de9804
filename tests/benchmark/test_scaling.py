"""The simulation of more cores: what it counts, and that its script runs."""

import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "scaling.py"


@pytest.fixture(scope="module")
def scaling() -> dict:
    return runpy.run_path(str(SCRIPT))


def test_one_core_has_nobody_to_wait_for(scaling: dict) -> None:
    """SmolLM2 in Q4_K and its head in Q8_0, read at 35 GB/s: 59.7 MB and 30.1 MB."""
    costs = scaling["Costs"](core=35, machine=1000, exchange=10, handover=60)
    time = scaling["token_time"]("smollm2-135m", 1.0, 1, costs, costs)
    weights = 30 * (960 * 576 + 576 * 576 + 3072 * 576 + 576 * 1536) * 144 / 256 + 49152 * 576 * 34 / 32
    assert (time.sums, time.barriers) == (0, 0)
    assert time.total == pytest.approx(weights / 35e3)


def test_cores_share_the_weights_until_memory_has_no_more(scaling: dict) -> None:
    costs = scaling["Costs"](core=10, machine=40, exchange=10, handover=60)
    times = {n: scaling["token_time"]("llama-2-7b", 1.0, n, costs, costs) for n in (1, 2, 4, 8)}
    assert times[1].weights == pytest.approx(2 * times[2].weights) == pytest.approx(4 * times[4].weights)
    assert times[8].weights == times[4].weights
    assert times[8].barriers == pytest.approx(2 * times[4].barriers) == pytest.approx((9 * 32 + 3) * 8 * 0.06)


def test_half_of_the_columns_are_half_of_the_layers_bytes(scaling: dict) -> None:
    costs = scaling["Costs"](core=10, machine=40, exchange=10, handover=60)
    dense, half = (scaling["token_time"]("llama-3-8b", density, 8, costs, costs) for density in (1.0, 0.5))
    head = 128256 * 4096 * 34 / 32 / 40e3
    assert half.weights - head == pytest.approx((dense.weights - head) / 2)
    assert (half.sums, half.barriers) == (dense.sums, dense.barriers)


def test_the_script_runs(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--models", "llama-2-7b", "--cores", "4", "--machine-rate", "60"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out.count("| llama-2-7b |") == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [(["--models", "gpt"], "none of"), (["--cores", "3"], "--machine-rate"), (["--core-rates", "1"], "two rates")],
)
def test_what_it_cannot_simulate(arguments, says, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert says in capsys.readouterr().err
