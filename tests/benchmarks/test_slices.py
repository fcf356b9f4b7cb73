"""Slices of measurements on a GPU, rehearsed on the CPU from their first line to their last."""

import json
import os
import sys
from importlib import import_module

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import (
    checks,
    detectors,
    flops,
    loss,
    loss_cases,
    machine,
    methods,
    predict,
    rates,
    slices,
    timing,
    train_report,
    train_step,
)
from benchmarks.cases import Size
from benchmarks.recording import Results
from benchmarks.slices import Part
from dwtriton.core.errors import UserError
from dwtriton.tune import build_parser
from tests.support.fake_gpu import rehearsal

SMALL = "--height 64 --width 96 --seconds 0"
TINY = {
    "benchmarks.loss": f"{SMALL} --classes 4 --host-calls 1 --boxes 1 7",
    "benchmarks.loss_cases": "--seconds 0",
    "benchmarks.train_step": f"{SMALL} --cfg shapes --varied-seconds 0 --images 2",
    "benchmarks.predict": f"{SMALL} --cfg shapes --batches 1 2",
    "benchmarks.frozen": f"{SMALL} --images 1",
}


@pytest.fixture
def rehearsed(monkeypatch, tmp_path):
    """run(slice) -> exit code: the GPU's path on the CPU, in this process, of small cases with the PyTorch form."""
    step, loss_of = detectors.make_train_step, methods._loss
    results = tmp_path / "results"

    def run_command(part, _seconds):
        commands.append((part.module, part.words()))
        if part.module == "dwtriton.tune":
            build_parser().parse_args(part.words())
            return 0
        return import_module(part.module).main(part.words())

    def small(part):
        file = results / f"{part.module}.json"
        return part._replace(arguments=f"{part.arguments} {TINY.get(part.module, '')} --out {file}")

    commands: list = []
    parts = {name: [small(part) if part.module in TINY else part for part in of] for name, of in slices.SLICES.items()}
    monkeypatch.setattr(slices, "SLICES", parts)
    monkeypatch.setattr(slices, "run_command", run_command)
    monkeypatch.setattr(slices, "is_tuned", lambda: False)
    monkeypatch.setattr(torch, "compile", lambda function=None, **_: function)
    monkeypatch.setattr(methods, "_loss", lambda backend, strides: loss_of("torch", strides))
    monkeypatch.setattr(
        train_step, "make_train_step", lambda method, *a, **k: step(method.replace("triton", "eager"), *a, **k)
    )
    monkeypatch.setattr(machine, "_output", lambda *_: None)
    monkeypatch.setattr(timing, "FLUSHED", 2**10)
    monkeypatch.setattr(timing, "COPIED", 2**10)
    monkeypatch.setattr(timing, "RUNS", 2)
    monkeypatch.setattr(rates, "WARM_UP_STEPS", 1)
    monkeypatch.setattr(train_step, "convolutions", lambda *_, **__: [flops.Call(10**9, 10**6)])
    monkeypatch.setattr(train_step, "peak_flops", lambda _gpu: 1e12)
    monkeypatch.setattr(checks, "SMALL", Size(96, 128, 4))
    monkeypatch.setattr(loss, "replays_the_same_bits", lambda step: step() is not None)  # its graph is a stand-in
    monkeypatch.setattr(Results, "plot", lambda self: None)
    for name, given in (("cudnn_convolution_relu", 3), ("cudnn_convolution_add_relu", 5)):  # before their geometry
        monkeypatch.setattr(torch, name, lambda *args, given=given: torch.conv2d(*args[:2], None, *args[given:]))
    tiny = {name: case._replace(size=Size(64, 96, 3, (8, 16)), batch=1) for name, case in loss_cases.CASES.items()}
    tiny = {name: case._replace(boxes=7) for name, case in tiny.items()}
    monkeypatch.setattr(loss_cases, "CASES", tiny)
    for name in ("DWTRITON_CACHE", "PYTHONPATH"):
        monkeypatch.setenv(name, "")

    def run(name, *arguments):
        with rehearsal(monkeypatch):
            return slices.main([name, *arguments])

    run.commands, run.results = commands, results
    return run


def rows(file):
    return json.loads(file.read_text())["rows"]


def test_the_slice_of_the_kernels_is_rehearsed_and_goes_on_where_it_stopped(rehearsed, capsys):
    assert rehearsed("kernels") == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-2:] == ["cannot be measured here: nothing", "missing: nothing"]
    measured = rows(rehearsed.results / "benchmarks.loss.json")
    assert {row["method"] for row in measured} == set(methods.METHODS)
    assert all(row["timing"] == "graph" and row["kernel_configs"] == "defaults" for row in measured[:4])
    assert {"host_ms", "kernels_ms"} <= measured[0].keys()
    assert len(rows(rehearsed.results / "benchmarks.loss_cases.json")) == len(loss_cases.CASES)
    assert "the host takes" in printed
    rehearsed.commands.clear()
    assert rehearsed("kernels") == 0
    assert [module for module, _ in rehearsed.commands] == ["dwtriton.tune"]


def test_the_slice_of_steps_is_rehearsed(rehearsed, capsys):
    assert rehearsed("steps") == 0
    measured = rows(rehearsed.results / "benchmarks.train_step.json")
    assert [row["method"] for row in measured] == ["compiled", "triton", "torchvision", "released"]
    assert all(row["direct_copies"] == 1 and row["kernels_ms"]["copies"] == 0.001 for row in measured)
    assert all((row.keys() >= {"mfu", "roofline"}) == (row["method"] != "torchvision") for row in measured)
    assert "missing: nothing" in capsys.readouterr().out


def test_the_slice_of_everything_else_is_rehearsed(rehearsed, monkeypatch):
    """All its rows, of which the configs are the same here; steps are not run."""
    figures = {"images_s": 4.0, "ms": 500.0, "steps": 3, "warm_up_s": 1.0, "peak_gb": 0.1}
    counts = ("steps", "graphs", "graphs_expected", "graph_breaks", "host_syncs")
    for module in (train_step, predict):
        monkeypatch.setattr(module, "measure_steps", lambda *_: figures)
    monkeypatch.setattr(train_step, "measure_parts", lambda *_: dict.fromkeys(train_report.PARTS, 1.0))
    monkeypatch.setattr(train_step, "profile_step", lambda *_: {})
    monkeypatch.setattr(train_step, "torchvision_step", lambda *_, **__: None)  # rehearsed above
    monkeypatch.setattr(train_step, "varied_steps", lambda *_: dict.fromkeys(counts, 0))
    assert rehearsed("more") == 0
    steps = rows(rehearsed.results / "benchmarks.train_step.json")
    expected = {"compiled", "CUDA graphs", "tried convolutions", "triton", "eager", "varied"}
    assert expected | {"torchvision", "torchvision compiled"} == {row["method"] for row in steps}
    assert "parts_ms" in next(row for row in steps if row["method"] == "compiled")
    assert {row["method"] for row in rows(rehearsed.results / "benchmarks.predict.json")} == set(predict.METHODS)
    assert ["ms" in row for row in rows(rehearsed.results / "benchmarks.frozen.json")] == [True] * 8


MODULE = """
import json, os, sys, time
from pathlib import Path

FILE = Path("{file}")

if __name__ == "__main__":
    results = json.loads(FILE.read_text()) if FILE.exists() else {{"machine": {{"name": "A GPU"}}, "rows": []}}
    for word in sys.argv[1:]:
        if word in [row["method"] for row in results["rows"]]:
            continue
        if word.endswith("hangs"):
            time.sleep(60)
        if word == "crashes":
            os.abort()
        if word == "refused":
            sys.exit(2)
        results["rows"].append({{"method": word, "ms": 1.0}})
        FILE.write_text(json.dumps(results))

def read_arguments(words):
    return words

def open_results(words):
    from benchmarks.recording import Results

    return Results(FILE, {{"machine": {{"name": "A GPU"}}}}, ("method",), None, True)

def planned(words):
    return [{{"method": word}} | ({{"kernel_configs": "defaults"}} if word == "ours-hangs" else {{}}) for word in words]
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """make(*(rows of a part)) -> what `slices.state` says after a run of these parts, in processes of their own."""
    (tmp_path / "made_benchmark.py").write_text(MODULE.format(file=tmp_path / "made.json"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_benchmark", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(slices.ROOT)]))
    monkeypatch.setattr(slices, "LEAST", 0.1)

    def run(*arguments, cap=2.0, seconds=60.0):
        parts = [Part("made_benchmark", words, cap) for words in arguments]
        deadline = slices.time.monotonic() + seconds
        codes = [slices.run_part(part, deadline) for part in parts]
        return codes, *slices.state(parts)

    return run


def test_a_row_that_crashes_or_hangs_is_recorded_and_the_others_are_measured(made):
    codes, skipped, missing = made("one crashes two", "hangs", "three")
    assert codes == [0, 0, 0]
    assert skipped == ["crashes (its process ended with code -6)", "hangs (not finished within 2 s)"]
    assert missing == []
    assert made("one crashes two", "hangs", "three", seconds=0.0) == ([0, 0, 0], skipped, [])


def test_rows_without_time_and_those_behind_a_refusal_are_missing(made):
    codes, skipped, missing = made("refused one", "two", seconds=20.0)
    assert codes == [2, 0]
    assert (skipped, missing) == ([], ["refused", "one"])
    assert made("hangs", seconds=0.5)[2] == ["hangs"]
    assert made("ours-hangs")[1:] == ([], ["ours-hangs"])  # it may have compiled for the first time


def test_what_this_machine_cannot_do_is_one_line(monkeypatch, capsys):
    with pytest.raises(UserError, match="gpu-steps: PyTorch finds no GPU of NVIDIA or AMD"):
        slices.main(["steps"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "AMD Instinct MI300X")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.version, "hip", "7.1")
    for name in slices.SLICES:
        slices.look_at_gpu(name)
    *steps, kernels = sorted(capsys.readouterr().out.splitlines(), key=len, reverse=True)
    driver = "the driver's version, for which only NVIDIA's is asked. Everything else is measured"
    assert kernels == f"AMD Instinct MI300X, left out: {driver}"
    peak = "shares of its peak rate and the roofline, as it is not in benchmarks/flops.py"
    assert steps == [f"AMD Instinct MI300X, left out: {peak}; {driver}"] * 2
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    slices.look_at_gpu("more")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    slices.look_at_gpu("more")
    lacks = "bfloat16, which it lacks (rows of the loss fail, steps run in float16)"
    assert capsys.readouterr().out == f"NVIDIA H200, left out: {lacks}. Everything else is measured\n"
    monkeypatch.setattr(slices, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Triton is not installed"):
        slices.look_at_gpu("steps")


def test_rows_of_other_launch_configs_and_of_other_code_are_measured_again(tmp_path):
    file, head = tmp_path / "rows.json", {"machine": {"name": "A GPU", "code": "1"}, "case": {"classes": 80}}
    row = {"method": "triton", "kernel_configs": "a-gpu.json 12"}
    Results(file, head, ("method",), None, resume=True).add(row | {"ms": 1.0})
    results = Results(file, head, ("method",), None, resume=True)
    other = row | {"kernel_configs": "a-gpu.json 13"}
    assert (results.missing([row]), results.missing([other])) == ([], [other])
    results.add(other | {"skipped": "out of time"})
    assert results.missing([other]) == [other]
    assert len(results.content["rows"]) == 1
    changed = head | {"machine": {"name": "A GPU", "code": "2"}}
    assert Results(file, changed, ("method",), None, resume=True).content["rows"] == []
    assert Results(file, head, ("method",), None, resume=False).content["rows"] == []


def test_a_row_of_ours_that_crashes_is_a_failure(made, monkeypatch):
    add = Results.missing
    monkeypatch.setattr(
        Results, "missing", lambda self, planned: [row | {"kernel_configs": "defaults"} for row in add(self, planned)]
    )
    assert made("crashes")[0] == [1]
