"""The benchmark of the loss: each method computes what it should, and a wrong result is refused."""

import json
from types import SimpleNamespace

import pytest
import torch

from benchmarks import (
    checks,
    loss,
    methods,
)
from benchmarks.cases import Size, make_case
from benchmarks.recording import caption
from benchmarks.report import draw, markdown_table
from benchmarks.timing import measure
from dwtriton.core.errors import UserError
from dwtriton.reference import loss as reference
from tests.support.peak import peak_bytes

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = torch.device("cpu")
TINY = Size(height=96, width=128, classes=4)
TINY_ARGUMENTS = [
    "--device",
    "cpu",
    "--height",
    "96",
    "--width",
    "128",
    "--classes",
    "4",
    "--seconds",
    "0",
    "--host-calls",
    "1",
]


def run(tmp_path, *arguments):
    loss.main([*TINY_ARGUMENTS, *arguments, "--out", str(tmp_path / "results" / "tiny.json")])
    return json.loads((tmp_path / "results" / "tiny.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", ["eager", "fcos", "released"])
def test_losses_and_gradients_are_finite_and_there_for_every_level(method, dtype):
    case = make_case(TINY, 2, 3, dtype, CPU)
    losses, gradients = methods.make_step(method, case)()
    assert len(losses) == 3
    assert torch.stack(list(losses.values())).isfinite().all()
    assert [gradient.shape for gradient in gradients] == [level.shape for level in case.leaves()]
    assert [gradient.dtype for gradient in gradients] == [level.dtype for level in case.leaves()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].any()


@pytest.mark.parametrize("method", ["eager", "released"])
def test_dual_weighting_is_within_the_float32_rules_whoever_computes_it(method):
    assert checks.worst_error(method, torch.float32, CPU) <= 1


def test_compiling_breaks_the_graph_which_is_counted_and_changes_no_result(monkeypatch):
    passes = [  # this backend spares the minutes of code generation
        torch.compile(function, backend="eager") for function in (reference.forward_pass, reference.backward_pass)
    ]
    monkeypatch.setattr(methods, "_compiled_passes", lambda: passes)
    methods.forget_compiled()
    assert methods.graph_breaks() == 0
    assert checks.worst_error("compiled", torch.float32, CPU) <= 1
    assert methods.graph_breaks() > 0
    methods.forget_compiled()


@pytest.mark.parametrize("bad", [1e-3, torch.nan])
def test_a_wrong_gradient_stops_the_benchmark_before_anything_is_written(bad, monkeypatch, tmp_path):
    right = methods.make_step

    def wrong(method, case):
        def step():
            losses, gradients = right(method, case)()
            if gradients[0].dtype == torch.float32:
                gradients[0][0, 0, 0, 0] += bad * gradients[0].abs().max()
            return losses, gradients

        return step

    monkeypatch.setattr(checks, "make_step", wrong)
    with pytest.raises(UserError, match="eager in float32 is off"):
        run(tmp_path, "--methods", "eager", "--boxes", "3")
    assert not list(tmp_path.rglob("*"))


def test_results_are_complete(tmp_path):
    results = run(tmp_path, "--methods", "eager", "fcos", "released", "--boxes", "1", "3", "--dtypes", "float32")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == ["tiny.json", "tiny.png"]
    assert [(row["method"], row["boxes"]) for row in results["rows"]] == [
        (method, boxes) for method in ("eager", "fcos", "released") for boxes in (1, 3)
    ]
    points = sum(height * width for height, width in TINY.levels())
    floor_ms = 3 * 2 * points * 4 * 4 / (results["copy_gb_s"] * 1e9) * 1e3
    for row in results["rows"]:
        assert row["timing"] == "wall"
        assert row["runs"] >= 1
        assert row["ms"] > 0
        assert row["host_ms"] > 0
        assert row["extra_mb"] > 0
        assert row["floor_ms"] == pytest.approx(floor_ms, rel=0.01)
        assert row["share"] == pytest.approx(row["floor_ms"] / row["ms"], rel=0.02)
    assert all(check["passed"] for check in results["checks"])
    assert results["machine"].keys() >= {"device", "name", "threads", "torch", "commit", "dirty", "date"}
    assert results["machine"]["torch"] in caption(results)
    table = markdown_table(results).splitlines()
    assert len(table) == 4
    assert {line.count("|") for line in table} == {8}


def test_the_released_algorithm_is_skipped_where_its_tensors_do_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(loss, "free_bytes", lambda device: methods.released_bytes(TINY, 2, boxes=3))
    results = run(tmp_path, "--methods", "eager", "released", "--boxes", "3", "4")
    skipped = {(row["method"], row["boxes"]): row["skipped"] for row in results["rows"] if "skipped" in row}
    assert skipped.keys() == {("released", 4)}
    assert "GB are free" in skipped["released", 4]
    assert markdown_table(results).splitlines()[-1].split(" | ")[4] == "-"


def test_its_memory_is_estimated_from_above():
    for size, boxes in ((TINY, 1), (TINY, 50), (Size(128, 128, 40), 4)):
        case = make_case(size, 2, boxes, torch.float32, CPU)
        extra = peak_bytes(methods.make_step("released", case)) - sum(level.nbytes for level in case.leaves())
        assert extra <= methods.released_bytes(size, 2, boxes) <= 2 * extra


def test_baselines_are_skipped_when_out_of_time_or_failing_and_ours_never(tmp_path, monkeypatch):
    late = run(tmp_path, "--methods", "eager", "fcos", "--boxes", "3", "--budget", "0")["rows"]
    assert "ms" in late[0]
    assert late[1]["skipped"] == "out of time"

    def fail(case):
        raise RuntimeError("no such luck\nat all")

    monkeypatch.setattr(methods, "_fcos_step", fail)
    failed = run(tmp_path, "--methods", "eager", "fcos", "--boxes", "3")["rows"]
    assert failed[1]["skipped"] == "RuntimeError: no such luck"
    monkeypatch.setattr(loss, "make_step", lambda method, case: fail(case))
    assert loss.main([*TINY_ARGUMENTS, "--methods", "eager", "--boxes", "3", "--out", str(tmp_path / "own.json")]) == 1
    assert json.loads((tmp_path / "own.json").read_text())["rows"][0]["skipped"] == "RuntimeError: no such luck"


def test_too_little_memory_for_the_checks_and_for_a_row_is_one_line(monkeypatch, capsys):
    def too_large(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    args = loss.read_arguments([*TINY_ARGUMENTS, "--methods", "triton", "--boxes", "3"])
    monkeypatch.setattr(loss, "worst_error", lambda *_: 0.5)
    monkeypatch.setattr(loss, "make_case", too_large)
    [check] = loss.correctness(args, SimpleNamespace(type="cuda"))
    assert check["passed"]
    assert capsys.readouterr().out.count("too little memory on this GPU; syncs and graphs are not checked") == 1
    row = {"method": "triton", "batch": 2, "boxes": 3, "dtype": "float32"}
    assert loss.measure_row(row, TINY, CPU, 1e9, 0, False) == {"skipped": loss.TOO_LARGE}
    assert not capsys.readouterr().err


def gpu_row(method, boxes, ms, extra_mb=0.5):
    shared = {
        "dtype": "bfloat16",
        "batch": 16,
        "timing": "graph",
        "wall_ms": 1,
        "host_ms": 0.4,
        "runs": 9,
        "floor_ms": 0.04,
    }
    return {"method": method, "boxes": boxes, "ms": ms, "extra_mb": extra_mb, "share": 0.04 / ms, **shared}


def test_targets_are_compared_with_what_was_measured():
    rows = [gpu_row("triton", 7, 0.05), gpu_row("triton", 1000, 0.3, extra_mb=9), gpu_row("eager", 7, 1.1)]
    skipped = {"method": "released", "boxes": 7, "dtype": "bfloat16", "batch": 16, "skipped": "out of time"}
    found = {check["name"]: (check["value"], check["passed"]) for check in checks.target_checks([*rows, skipped])}
    assert found == {
        "bfloat16, 7 boxes: time over the three-trip floor": (1.25, True),
        "bfloat16, 7 boxes: times faster than eager": (22, True),
        "our PyTorch form, 7 boxes: ms": (1.1, True),
        "bfloat16: time with 1000 boxes over that with 7": (6, False),
        "bfloat16, 1000 boxes: extra memory in MB": (9, False),
    }


def test_a_plot_is_drawn_for_several_settings(tmp_path):
    rows = [gpu_row("triton", boxes, 0.05) for boxes in (1, 7)]
    rows += [{**row, "dtype": "float32"} for row in rows] + [{"method": "released", "boxes": 7, "skipped": "failed"}]
    rows[-1] |= {"dtype": "float32", "batch": 16}
    machine = {"name": "A GPU", "torch": "2", "commit": "0123456789", "dirty": False, "date": "today"}
    case = {"height": 800, "width": 1344, "classes": 80}
    draw({"machine": machine, "case": case, "copy_gb_s": 4000, "rows": rows}, tmp_path / "plot.png")
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


@pytest.mark.gpu
@needs_gpu
def test_kernels_are_timed_as_a_graph_that_replays_the_same_bits_without_syncs():
    device = torch.device("cuda")
    step = methods.make_step("triton", make_case(TINY, 2, 3, torch.bfloat16, device))
    assert checks.runs_without_syncs(step)
    assert checks.replays_the_same_bits(step)
    measured = measure(step, device, 0.1, capture=True)
    assert measured.timing == "graph"
    assert 0 < measured.ms < measured.wall_ms


@pytest.mark.gpu
@needs_gpu
def test_a_step_that_synchronises_is_found_out():
    case = make_case(TINY, 2, 3, torch.float32, torch.device("cuda"))
    assert not checks.runs_without_syncs(methods.make_step("eager", case))
