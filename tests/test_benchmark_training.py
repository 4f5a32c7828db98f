"""The measuring itself: what it counts, how it compares, what it says; never how fast something is."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from haemex.dataset import TrainingCopies
from haemex.network import TwoOutputUNet
from haemex.provenance import ROOT
from haemex.tables import read_table

SMALL = {"widths": [2, 3, 4, 4], "convs_per_level": 1, "normalisation": "batch"}


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("training_benchmark", Path(ROOT, "benchmarks/training.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(benchmark, monkeypatch, tmp_path):
    """The benchmark on a small network, and its config file."""
    text = benchmark.CONFIG.read_text().replace("[16, 32, 64, 128]", "[2, 3, 4, 4]")
    config = tmp_path / "config.yaml"
    config.write_text(text.replace("convs_per_level: 4", "convs_per_level: 1"))
    monkeypatch.setattr(benchmark, "CONFIG", config)
    monkeypatch.setattr(benchmark, "MATRIX", {"cpu": 64})
    monkeypatch.setattr(benchmark, "COPY_BYTES", {"cpu": 2**16})
    monkeypatch.setitem(sys.modules, "monai", None)  # as if it were not installed
    monkeypatch.setitem(sys.modules, "monai.losses", None)
    return benchmark


def test_work_of_single_layers_by_hand(benchmark):
    grid = (4, 8, 8)  # 256 voxels
    with torch.device("meta"):
        # 5 outputs at every voxel, each of 1 x 27 products; 256 read, 1280 written.
        assert benchmark.count_work(nn.Sequential(nn.Conv3d(1, 5, 3, padding=1)), grid) == (256 * 5 * 27, 256 + 1280)
        # Stride 2: 32 voxels are left.
        strided = nn.Conv3d(1, 5, 3, stride=2, padding=1)
        assert benchmark.count_work(nn.Sequential(strided), grid) == (32 * 5 * 27, 256 + 160)
        # Each of 256 numbers meets 2 x 8 weights; the layer after it multiplies nothing.
        up = nn.Sequential(nn.ConvTranspose3d(1, 2, 2, stride=2), nn.ReLU())
        assert benchmark.count_work(up, grid) == (256 * 16, 256 + 4096 + 2 * 4096)


def test_work_is_what_pytorch_counts(benchmark):
    model, grid = TwoOutputUNet(**SMALL), (8, 16, 16)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, *grid))
    with torch.device("meta"):
        counted, _ = benchmark.count_work(TwoOutputUNet(**SMALL), grid)
    assert 2 * counted == counter.get_total_flops()


def test_the_papers_network_does_576_g_multiply_adds(benchmark):
    with torch.device("meta"):
        model = TwoOutputUNet([16, 32, 64, 128], 4, "batch")
    assert round(benchmark.count_work(model, (32, 256, 256))[0] / 1e9) == 576


def test_projection_by_hand(benchmark):
    # 100 steps per epoch, 10 steps/s: an epoch takes 10 s, reading it at 4 copies/s 25 s.
    assert benchmark.projected_s(100, 3, 10.0, 4.0, kept=True) == pytest.approx(25 + 10 + 10)
    assert benchmark.projected_s(100, 3, 10.0, 4.0, kept=False) == pytest.approx(75)
    assert benchmark.projected_s(100, 3, 10.0, 40.0, kept=False) == pytest.approx(30)


def test_verdicts(benchmark):
    assert benchmark.verdict(2.5, 2.5, at_least=True, here=True) == "reached"
    assert benchmark.verdict(2.49, 2.5, at_least=True, here=True) == "missed"
    assert benchmark.verdict(25.1, 25, at_least=False, here=True) == "missed"
    assert benchmark.verdict(24.9, 25, at_least=False, here=True) == "reached"
    assert benchmark.verdict(9.0, 2.5, at_least=True, here=False) == "not measured here"
    assert benchmark.verdict(None, 2.5, at_least=True, here=True) == "not measured here"


class Loop:
    def __init__(self, steps):
        self.steps, self.precision = steps, "fp32"


def filled(benchmark, monkeypatch, seconds):
    """A report of rounds that were made up."""
    ours = benchmark.OurLoop.__new__(benchmark.OurLoop)
    ours.steps, ours.precision = 10, "bf16"
    loops = {benchmark.OURS: ours, benchmark.PLAIN: Loop(10), benchmark.USUAL: Loop(5)}
    monkeypatch.setattr(benchmark, "monai_network", lambda: nn.Sequential(nn.Conv3d(1, 1, 3, padding=1)))
    rounds = [{**dict(zip(loops, one, strict=True)), "fp32": 0.5, "bf16": 1.0, "copy": 100.0} for one in seconds]
    report = benchmark.Report()
    benchmark.report_loops(report, loops, rounds, torch.device("cpu"), (4, 8, 8), {"network": SMALL})
    return report


def test_loops_are_compared_within_each_round(benchmark, monkeypatch):
    # The machine halves its speed in the second round; within each round ours is 3 and 4 and 5 times as fast.
    report = filled(benchmark, monkeypatch, [(1.0, 3.0, 1.0), (2.0, 8.0, 2.0), (1.0, 5.0, 4.0)])
    ours, value = benchmark.OURS, report.value
    assert value("loops", ours, "steps per second") == 10
    assert value("loops", ours, f"times {benchmark.PLAIN}") == 4
    with torch.device("meta"):
        work, moved = benchmark.count_work(TwoOutputUNet(**SMALL), (4, 8, 8))
    # MONAI's steps take 2, 2 and 8 times as long, and each of them does 256 x 27 multiply-adds.
    expected = 2 * work / (256 * 27)
    assert value("loops", ours, f"times {benchmark.USUAL}, per multiply-add") == pytest.approx(expected)
    assert value("loops", benchmark.PLAIN, f"times {benchmark.USUAL}, per multiply-add") is None
    # A multiply-add is 2 operations, a step 3 forward passes; 0.1 s a step at a ceiling of 1 TFLOP/s.
    assert value("loops", ours, "part of the matrix ceiling") == pytest.approx(6 * work / 0.1 / 1e12)
    assert value("loops", ours, "part of the copy ceiling") == pytest.approx(3 * moved * 2 / 0.1 / 1e9 / 100)


def test_bars(benchmark, monkeypatch):
    report = filled(benchmark, monkeypatch, [(1.0, 3.0, 1.0)] * 3)
    report.add("loops", benchmark.OURS, benchmark.FINAL, 24.0, "min")
    report.add("inference", "2 CPU cores", benchmark.SCAN, 21.0, "s")

    def verdicts(device_name, cuda):
        return {
            row["bar"]: (row["value"] and round(row["value"], 6), row["verdict"])
            for row in benchmark.judge(report, device_name, cuda)
        }

    on_h200 = verdicts("NVIDIA H200", True)
    assert on_h200["H200: speed / plain PyTorch, fp32 >= 2.5"] == (3, "reached")
    assert on_h200["H200: final training, min <= 25"] == (24, "reached")
    assert on_h200["CPU: speed / plain PyTorch, fp32 >= 1.0"] == (None, "not measured here")
    assert on_h200["H200: speed per multiply-add / MONAI, mixed >= 1.3"] == (None, "not measured here")
    assert on_h200["2 CPU cores: one scan, s <= 20"] == (21, "missed")
    assert verdicts("NVIDIA T4", True)["H200: final training, min <= 25"] == (24, "not measured here")
    on_cpu = verdicts("CPU", False)
    assert on_cpu["H200: final training, min <= 25"] == (None, "not measured here")
    assert on_cpu["CPU: speed / plain PyTorch, fp32 >= 1.0"] == (3, "reached")


def test_the_scan_is_a_brain_with_a_haematoma(benchmark):
    ct, haematoma, affine = benchmark.synthetic_scan((32, 64, 64), [112.0, 112.0, 160.0])
    assert ct.shape == haematoma.shape == (32, 64, 64)
    np.testing.assert_allclose(np.abs(np.diag(affine)), [1.75, 1.75, 5, 1])
    assert 0.2 < (ct == 0).mean() < 0.8  # outside, and darker than the mean
    # An ellipsoid of half axes 18, 22 and 15 mm.
    assert haematoma.sum() * 1.75**2 * 5 == pytest.approx(4 / 3 * np.pi * 18 * 22 * 15, rel=0.05)
    assert np.median(ct[haematoma == 1]) > 5 * np.median(ct[(haematoma == 0) & (ct > 0)]) / 2


def test_one_run_without_monai(small, tmp_path, capsys):
    """All but what runs in processes of its own."""
    grid = ["--grid", "8", "16", "16", "--scan", "8", "16", "16"]
    small.main(
        ["--out", str(tmp_path / "out"), *grid, "--steps", "2", "--minutes", "0", "--threads", "1", "--parts", "loops"]
    )
    told = capsys.readouterr().out
    assert "pip install monai" in told and "not measured here" in told
    rows = read_table(tmp_path / "out/training.tsv")
    written = json.loads((tmp_path / "out/training.json").read_text())
    assert len(rows) == len(written["rows"]) and len(written["rounds"]) == small.LEAST_ROUNDS
    found = {(row["subject"], row["measure"]): row["value"] for row in rows}
    for name in (small.OURS, small.FASTER, small.PLAIN):
        assert found[name, "steps per second"] > 0
    assert found[small.OURS, f"times {small.PLAIN}"] > 0
    assert found[small.USUAL, "steps per second"] is None
    assert found["TrainingCopies.read_ahead", "copies per second"] > 0
    assert found["ISA-L, level 1", "size"] > 0
    assert not [row for row in rows if row["measure"] == "failed"]


def test_a_competitor_that_fails_does_not_stop_the_rest(small, tmp_path):
    small.make_copies(tmp_path / "copies", (8, 16, 16), small.arguments(["--out", "x"])[1], 1)
    assert len(TrainingCopies(["one"], tmp_path / "copies/augment", 0)) == 1

    class Sleeper(Loop):
        def round(self):
            pass

    def broken():
        raise RuntimeError("no such kernel\nand more")

    report, rounds = small.Report(), []
    loops = small.measure_loops(report, {"a": broken, "b": lambda: Sleeper(1)}, torch.device("cpu"), 0, rounds)
    assert list(loops) == ["b"] and len(rounds) == small.LEAST_ROUNDS
    (row,) = [row for row in report.rows if row["measure"] == "failed"]
    assert (row["subject"], row["note"]) == ("a", "RuntimeError: no such kernel")


@pytest.mark.parametrize("words", [["--grid", "6", "16", "16"], ["--steps", "0"], ["--threads", "9999"]])
def test_wrong_words_are_refused(benchmark, words, capsys):
    with pytest.raises(SystemExit):
        benchmark.arguments(["--out", "x", *words])
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_one_run_with_its_own_processes(small, tmp_path, monkeypatch):
    monkeypatch.setattr(small, "PREDICTIONS", 1)
    grid = ["--grid", "8", "16", "16", "--scan", "8", "16", "16"]
    small.main(["--out", str(tmp_path / "out"), *grid, "--minutes", "0", "--parts", "memory", "inference"])
    rows = read_table(tmp_path / "out/training.tsv")
    found = {(row["part"], row["measure"]): row["value"] for row in rows}
    assert found["memory", "peak of the process"] > 0.1
    assert found["inference", small.SCAN] > 0
    assert found["inference", "Dice of the two masks"] > 0.9
    assert not [row for row in rows if row["measure"] == "failed"]
