"""Before the first step: whether compiling pays, and batch sizes that are compiled side by side."""

import copy
import os
import subprocess
import sys
from contextlib import closing

import pytest
import torch

from dwtriton import build_detector
from dwtriton.train import estimate, precompile, settle
from dwtriton.train.estimate import compile_seconds, compiling_pays, duration, remember_compile_seconds, time_step
from dwtriton.train.precompile import compile_buckets, processes_side_by_side
from dwtriton.train.settle import settle_compile
from dwtriton.train.step import TrainStep
from tests.support.waiting import leave_a_mark

CPU = torch.device("cpu")
THREE = "data.buckets=[[96, 96], [96, 128], [128, 96]]"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("DWTRITON_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cores(monkeypatch):
    return lambda count: monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(count)))


def test_compiling_pays_for_long_runs_alone():
    """What the compiled r50_1x saves of an eager step on an H100, 48%, against what compiling takes."""
    pays, why = compiling_pays(step_seconds=0.156, steps=90_000, seconds_to_compile=120)
    assert pays
    assert why == (
        "train.compile = auto is default: 90000 eager steps would take about 3.9 h; compiling saves about 1.9 h of "
        "that and takes 2 min"
    )
    pays, why = compiling_pays(step_seconds=0.05, steps=1_600, seconds_to_compile=138)  # the demo
    assert not pays
    assert why.startswith("train.compile = auto is off: 1600 eager steps would take about 80 s; compiling saves")


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (120, "2 min"), (7200, "2.0 h")])
def test_durations_are_in_fitting_units(seconds, text):
    assert duration(seconds) == text


def test_the_machine_remembers_how_long_a_graph_took(tmp_path):
    """The first graph is made alone, the others some at a time."""
    assert compile_seconds(4, 0, CPU) == 4 * estimate.SECONDS_A_GRAPH
    remember_compile_seconds(30.04, CPU)
    assert compile_seconds(1, 0, CPU) == 30
    assert compile_seconds(4, 0, CPU) == 120
    assert compile_seconds(4, 2, CPU) == 90
    assert compile_seconds(4, 3, CPU) == 60
    [record] = (tmp_path / "cache").iterdir()
    for damaged in ("", "[]", '{"seconds_a_graph": "soon"}', "\xff"):
        record.write_text(damaged)
        assert compile_seconds(1, 0, CPU) == estimate.SECONDS_A_GRAPH


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path):
    (tmp_path / "cache").touch()
    remember_compile_seconds(30, CPU)
    assert compile_seconds(1, 0, CPU) == estimate.SECONDS_A_GRAPH


def test_timing_a_step_changes_nothing_that_it_depends_on(tiny):
    cfg = tiny()  # batch norms train, so the black images would change their statistics
    detector = build_detector(cfg)
    before, random = copy.deepcopy(detector.state_dict()), torch.get_rng_state()
    assert time_step(cfg, detector, CPU, images=2, size=(64, 64)) > 0
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("step_seconds", "mode"), [(1.0, "default"), (0.001, "off")])
def test_auto_is_settled_by_a_timed_step(step_seconds, mode, tiny, monkeypatch):
    timed = []
    monkeypatch.setattr(settle, "time_step", lambda *arguments: timed.append(arguments) or step_seconds)
    cfg, why = settle_compile(tiny(THREE), None, CPU, images=4, steps=1000)
    assert cfg.train.compile == mode
    assert f"train.compile = auto is {mode}: 1000 eager steps" in why
    assert timed[0][3:] == (4, (96, 128))  # of the largest size


def test_a_resumed_run_stays_in_its_mode(tiny, monkeypatch):
    monkeypatch.setattr(settle, "time_step", None)  # is not called
    cfg, why = settle_compile(tiny(THREE), None, CPU, images=4, steps=1000, before="off")
    assert (cfg.train.compile, why) == ("off", "train.compile = off, as before")


def test_a_step_that_does_not_fit_uncompiled_is_compiled(tiny, monkeypatch):
    def time_step(*_arguments):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(settle, "time_step", time_step)
    cfg, why = settle_compile(tiny(THREE), None, CPU, images=4, steps=1)
    assert cfg.train.compile == "default"
    assert "does not fit into the GPU" in why


def test_processes_need_cores_and_memory_of_a_gpu(cores, tiny, monkeypatch):
    cfg = tiny(THREE)
    for count, processes in ((2, 0), (7, 0), (8, 2), (64, 2)):  # the first of three buckets needs none
        cores(count)
        assert processes_side_by_side(cfg, 4, CPU) == processes
    gpu = torch.device("cuda", 0)
    free = {"bytes": 100e9}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (free["bytes"], 200e9))
    assert processes_side_by_side(cfg, 4, gpu) == 2
    free["bytes"] = 1.5e9  # not for two contexts
    assert processes_side_by_side(cfg, 4, gpu) == 0


def test_ranks_compile_by_themselves(cores, tiny, monkeypatch):
    """The graphs of several ranks exchange normalisers."""
    cores(64)
    monkeypatch.setattr(precompile.ranks, "under_torchrun", lambda: True)
    assert processes_side_by_side(tiny(THREE), 4, CPU) == 0


def test_processes_run_side_by_side(tmp_path):
    """Each waits for the mark of the other."""
    calls = [(tmp_path, "first", "second", 0), (tmp_path, "second", "first", 0.1)]
    ended = [index for index in precompile._run_processes(leave_a_mark, calls, processes=2) if index is not None]
    assert sorted(ended) == [0, 1]
    assert (tmp_path / "first ended").exists()
    assert (tmp_path / "second ended").exists()


def test_processes_end_with_the_iterator(tmp_path):
    with closing(precompile._run_processes(leave_a_mark, [(tmp_path, "first", "first", 600)], processes=1)) as ended:
        while not (tmp_path / "first").exists():
            assert next(ended) is None
    assert not precompile.multiprocessing.active_children()
    assert not (tmp_path / "first ended").exists()


@pytest.fixture
def train_step(tiny, monkeypatch):
    """It compiles nothing."""
    monkeypatch.setattr(TrainStep, "rehearse", lambda *_arguments: None)
    cfg = tiny(THREE, "train.compile=default")
    return TrainStep(build_detector(cfg), cfg, CPU, capacity=50)


@pytest.fixture
def side_by_side(monkeypatch):
    """Calls that would be made in processes."""
    made = []

    def run(function, calls, processes):
        made.append((function, calls, processes))
        for index in reversed(range(len(calls))):
            yield None
            yield index

    monkeypatch.setattr(precompile, "_run_processes", run)
    return made


def test_sizes_that_are_in_no_cache_are_compiled_side_by_side_after_the_first(
    train_step, side_by_side, cores, monkeypatch
):
    cores(16)
    compiled = iter(range(100))
    monkeypatch.setattr(precompile, "_generated_graphs", lambda: next(compiled))
    told = list(compile_buckets(train_step, images=2, weighted=True))
    [(function, calls, processes)] = side_by_side
    assert (function, processes) == (precompile._compile_one, 2)
    assert [graph for _, graph, _ in calls] == [((96, 128), 2, 50, True), ((128, 96), 2, 50, True)]
    assert sum(finished for finished, _ in told) == 3
    names = [what.partition(" since ")[0] for _, what in told]
    assert list(dict.fromkeys(names)) == [
        "compiling 96 x 96",
        "compiling side by side 96 x 128, 128 x 96",
        "compiling side by side 96 x 128",
        "compiling 96 x 128",
        "compiling 128 x 96",
        "compiled",
    ]
    assert compile_seconds(1, 0, CPU) != estimate.SECONDS_A_GRAPH  # it remembers the first


def test_sizes_that_are_in_a_cache_need_no_processes(train_step, side_by_side, cores):
    cores(16)
    told = list(compile_buckets(train_step, images=2))
    assert not side_by_side
    assert [finished for finished, _ in told] == [0, 1, 1, 1]
    assert compile_seconds(1, 0, CPU) == estimate.SECONDS_A_GRAPH


IN_A_PROCESS = """
import torch
from dwtriton.config.load import load_config
from dwtriton.model.detector import build_detector
from dwtriton.train import precompile
from dwtriton.train.step import TrainStep

if __name__ == "__main__":
    precompile.CORES_OF_A_COMPILER = 1
    narrow = ["head.channels=16", "head.groups=4", "head.convs=1", "train.precision=float32", "train.compile=default"]
    cfg = load_config("shapes", ["data.buckets=[[64, 64], [64, 96], [96, 64]]", *narrow])
    detector = build_detector(cfg).to(memory_format=torch.channels_last)
    step = TrainStep(detector, cfg, torch.device("cpu"), capacity=64)
    for _, what in precompile.compile_buckets(step, images=2):
        print(what)
    print(precompile._generated_graphs(), torch._dynamo.utils.counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow
def test_what_processes_compile_is_found_by_the_run(tmp_path):
    """Forward and backward graph of the first size are generated here, those of the others elsewhere."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    (tmp_path / "probe.py").write_text(IN_A_PROCESS)
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "code"), "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, tmp_path / "probe.py"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "side by side" in done.stdout
    assert done.stdout.splitlines()[-1] == "2 4"
