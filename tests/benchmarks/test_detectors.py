"""The benchmarks of training steps and inference: fair comparisons, and each failure recorded."""

import json
from collections import Counter
from functools import partial

import pytest
import torch

from benchmarks import (
    detectors,
    flops,
    predict,
    predict_report,
    train_report,
    train_step,
)
from benchmarks.flops import image_flops
from dwtriton import load_config
from dwtriton.core.points import STRIDES
from dwtriton.model.pixels import PixelDetector

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU = torch.device("cpu")


SMALL = ["--device", "cpu", "--cfg", "shapes", "--height", "64", "--width", "96", "--seconds", "0"]


@pytest.mark.slow
def test_training_steps_are_measured_completely(tmp_path, capsys, monkeypatch):
    """Compiled steps are traced by Dynamo only: generating their code would take minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    out = tmp_path / "results" / "steps.json"
    methods = ["compiled", "released", "torchvision"]
    train_step.main([*SMALL, "--methods", *methods, "--images", "2", "--parts", "--varied", "4", "--out", str(out)])
    results = json.loads(out.read_text())
    *rows, varied = results["rows"]
    assert [row["method"] for row in rows] == methods
    for row in rows:
        assert row["images_s"] == pytest.approx(2e3 / row["ms"], rel=0.02)
        assert row["peak_gb"] > 0
        assert ("parts_ms" in row) == (row["method"] != "torchvision")
        assert 0 < row.get("loss_share", 0.5) < 1
        assert ("loss_share" in row) == (row["method"] == "compiled")  # the released one has no operators of its own
    parts = results["rows"][0]["parts_ms"]
    assert tuple(parts) == train_report.PARTS
    assert sum(parts.values()) == pytest.approx(results["rows"][0]["ms"], rel=0.02)
    expected = {"steps": 4, "graphs": 2, "graphs_expected": 2, "graph_breaks": 0, "host_syncs": None}
    assert varied == {"config": "shapes", "images": 2, "size": "64x96", "method": "varied", **expected}
    assert out.with_suffix(".png").exists()
    assert train_report.markdown_table(results) in capsys.readouterr().out


@pytest.fixture
def quick(monkeypatch):
    """Figures at once: for what becomes of them."""
    figures = {"images_s": 4.0, "ms": 500.0, "steps": 3, "warm_up_s": 1.0, "peak_gb": 0.1}
    monkeypatch.setattr(train_step, "measure_steps", lambda *_: figures)
    monkeypatch.setattr(train_step, "measure_parts", lambda *_: dict.fromkeys(train_report.PARTS, 1.0))
    monkeypatch.setattr(train_step, "profile_step", lambda *_: {"loss_share": 0.0123})
    monkeypatch.setattr(train_step, "convolutions", lambda *_, **__: [flops.Call(10**9, 10**6)])
    monkeypatch.setattr(predict, "measure_steps", lambda *_: figures)
    monkeypatch.setattr(predict, "median_ms", lambda *_: 1.0)


def fail(*_arguments, **_options):
    raise RuntimeError("no such luck\nat all")


def test_a_method_that_fails_is_recorded_and_the_others_go_on(quick, tmp_path, monkeypatch, capsys):
    """The exit code tells whether it was one of those that must run."""
    out = tmp_path / "steps.json"
    make = train_step.make_train_step
    arguments = [*SMALL, "--images", "2", "--varied", "0", "--out", str(out)]
    monkeypatch.setattr(train_step, "torchvision_step", fail)
    assert train_step.main([*arguments, "--methods", "torchvision", "eager"]) == 0
    failed, measured = json.loads(out.read_text())["rows"]
    assert (failed["method"], failed["skipped"]) == ("torchvision", "RuntimeError: no such luck")
    assert "images_s" not in failed
    assert measured["loss_share"] == 0.0123
    monkeypatch.setattr(
        train_step, "make_train_step", lambda method, *a, **k: (fail if method == "triton" else make)(method, *a, **k)
    )
    assert train_step.main([*arguments, "--methods", "triton", "eager"]) == 1
    results = json.loads(out.read_text())
    assert ["skipped" in row for row in results["rows"]] == [True, False]
    assert "| triton | RuntimeError: no such luck |" in capsys.readouterr().out
    assert out.with_suffix(".png").exists()


def test_what_fails_after_a_measurement_leaves_it(quick, tmp_path, monkeypatch, capsys):
    out = tmp_path / "steps.json"
    monkeypatch.setattr(train_step, "measure_parts", fail)
    monkeypatch.setattr(train_step, "varied_steps", fail)
    arguments = [*SMALL, "--images", "2", "--methods", "eager", "--parts", "--varied", "4", "--out", str(out)]
    assert train_step.main(arguments) == 1
    results = json.loads(out.read_text())
    assert results["rows"][0]["images_s"] == 4
    assert results["rows"][1]["skipped"] == "RuntimeError: no such luck"
    printed = capsys.readouterr().out
    assert "| eager | 4 | 1.00 | 500 | 0.1 | 1 |  |  | 1.2% |" in printed
    assert "Failed, eager: RuntimeError: no such luck." in printed
    assert "Failed, varied batches: RuntimeError: no such luck." in printed


def test_a_benchmark_that_is_cut_off_leaves_what_it_has_measured(quick, tmp_path, monkeypatch):
    def cut_off(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_step, "torchvision_step", cut_off)
    monkeypatch.setattr(predict, "torchvision_predict", cut_off)
    for module, arguments in ((train_step, ["--images", "2", "--varied", "0"]), (predict, ["--batches", "1"])):
        out = tmp_path / f"{module.__name__}.json"
        with pytest.raises(KeyboardInterrupt):
            module.main([*SMALL, *arguments, "--methods", "eager", "torchvision", "--out", str(out)])
        assert [row["method"] for row in json.loads(out.read_text())["rows"]] == ["eager"]
        assert out.with_suffix(".png").exists()


def test_inference_of_ours_that_fails_is_recorded_and_told_by_the_exit_code(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "own_predict", fail)
    out = tmp_path / "predict.json"
    assert predict.main([*SMALL, "--methods", "eager", "torchvision", "--batches", "1", "--out", str(out)]) == 1
    own, torchvisions = json.loads(out.read_text())["rows"]
    assert own == {"method": "eager", "batch": 1, "skipped": "RuntimeError: no such luck"}
    assert torchvisions["images_s"] == 4


def test_results_without_the_share_of_the_loss_have_an_empty_cell():
    row = {
        "config": "shapes",
        "images": 2,
        "size": "64x96",
        "method": "eager",
        "images_s": 4,
        "ms": 500,
        "peak_gb": 0.1,
    }
    table = train_report.markdown_table({"rows": [row, row | {"loss_share": 0.0049}]}).splitlines()
    assert [line.split(" | ")[9] for line in table if "eager" in line] == ["", "0.5%"]
    assert len({line.count("|") for line in table if line}) == 1


def test_torchvisions_detector_trains_the_same_parameters_as_ours():
    """On the same stored statistics, in the same groups of the optimiser; only ours has a factor for each level."""
    meta = torch.device("meta")
    cfg = detectors.benchmark_config("r50_1x", [(64, 96)], 2, "float32", "off")
    with meta:
        pair = [detectors.build_detector(cfg).train(), detectors.make_torchvision(cfg, (64, 96), meta).train()]
    groups = []
    for detector in pair:
        optimizer = detectors.build_optimizer(detector, cfg.optimizer, 2)
        groups.append([Counter(p.shape for p in group["params"]) for group in optimizer.param_groups])
        norms = [module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert len(norms) == 53
        assert not any(norm.training for norm in norms)
    ours, torchvisions = groups
    ours[0] -= Counter({torch.Size(): 5})
    assert ours == torchvisions


@pytest.mark.parametrize("training", [True, False])
def test_torchvisions_detector_gets_the_same_images_and_boxes_as_ours(training, monkeypatch):
    """At their own size, without being resized to it; in channels_last."""
    monkeypatch.setattr(torch.nn.functional, "interpolate", fail)
    size = (64, 96)
    cfg = detectors.benchmark_config("r50_1x", [size], 2, "float32", "off")
    batch = detectors.make_batch(size, [3, 0], cfg.head.num_classes, pinned=False)
    transform = detectors.TorchvisionDetector(cfg, size).train(training).transform
    images, targets = transform(list(batch.images.float().div_(255)), batch.targets)
    ours = PixelDetector(torch.nn.Identity(), cfg.data).normalise(batch.images, batch.image_sizes)
    torch.testing.assert_close(images.tensors, ours, rtol=0, atol=1e-5)
    assert images.tensors.stride() == ours.stride()
    for target, own in zip(targets, batch.targets, strict=True):
        assert torch.equal(target["boxes"], own["boxes"])


def test_inference_is_measured_completely(tmp_path, capsys):
    out = tmp_path / "results" / "predict.json"
    predict.main([*SMALL, "--methods", "eager", "torchvision", "--batches", "1", "2", "--out", str(out)])
    results = json.loads(out.read_text())
    cases = [("eager", 1), ("eager", 2), ("torchvision", 1), ("torchvision", 2)]
    assert [(row["method"], row["batch"]) for row in results["rows"]] == cases
    for row in results["rows"]:
        assert row["images_s"] == pytest.approx(1e3 * row["batch"] / row["ms"], rel=0.02)
        assert ("select_ms" in row) == (row["method"] == "eager")
    assert predict_report.markdown_table(results) in capsys.readouterr().out
    assert out.with_suffix(".png").exists()


def test_operations_of_a_network_are_counted():
    """A convolution more adds its own multiplications and additions, three times as many in training."""
    size, counts = (64, 96), {}
    for convs in (1, 2):
        cfg = load_config("shapes", [f"head.convs={convs}"])
        counts[convs] = [image_flops(cfg, size, training) for training in (False, True)]
    points = sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in STRIDES)
    added = 2 * points * 2 * 64 * 64 * 9  # in both towers
    assert counts[2][0] - counts[1][0] == added
    assert counts[2][1] - counts[1][1] == 3 * added
    assert flops.peak_flops("NVIDIA H200") == 989e12
    assert flops.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak_flops("NVIDIA H100 PCIe") == 756e12
    assert flops.peak_flops("A CPU") is None


def test_the_roofline_takes_the_longer_of_operations_and_memory_for_each_convolution():
    calls = [flops.Call(flops=6, entries=1), flops.Call(flops=1, entries=4)]
    assert flops.roofline_seconds(calls, peak=2.0, bytes_a_second=1.0) == 6 / 2 + 4 * 2
    one, two = (flops.convolutions(load_config("shapes"), (64, 96), images, training=True) for images in (1, 2))
    assert [2 * call.flops for call in one] == [call.flops for call in two]
    stem = two[0]
    assert stem.flops == 2 * 2 * 32 * 48 * 64 * 3 * 49
    assert stem.entries == 2 * 3 * 64 * 96 + 64 * 3 * 49 + 2 * 64 * 32 * 48


@pytest.mark.gpu
@needs_gpu
def test_steps_and_inference_are_measured_on_a_gpu(tmp_path):
    """What takes longest to compile is left to the benchmarks: parts of a step, and torchvision's detector."""
    small = ["--device", "cuda", *SMALL[2:], "--precision", "bfloat16"]
    methods = ["compiled", "CUDA graphs", "triton", "eager", "released", "torchvision"]
    steps = [*small, "--methods", *methods, "--images", "2", "--varied", "8", "--out", str(tmp_path / "steps.json")]
    assert train_step.main(steps) == 0
    *rows, varied = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert [row["method"] for row in rows] == methods
    assert not [row for row in rows if "skipped" in row]
    assert {row["method"] for row in rows if "loss_share" in row} == {"compiled", "triton", "eager"}
    parts = {row["method"]: row["kernels_ms"] for row in rows if "kernels_ms" in row}
    assert parts.keys() == set(methods[:-1])
    assert all(ms["convolution"] > 0 and ms["optimiser"] > 0 for ms in parts.values())
    assert all((parts[name]["loss"] > 0) == (name in train_step.KERNELS) for name in parts)
    assert varied["steps"] == 8
    assert (varied["graphs"], varied["graph_breaks"], varied["host_syncs"]) == (2, 0, 0)
    inference = ["--methods", "compiled", "eager", "torchvision", "--batches", "2"]
    assert predict.main([*small, *inference, "--out", str(tmp_path / "predict.json")]) == 0
    assert not [row for row in json.loads((tmp_path / "predict.json").read_text())["rows"] if "skipped" in row]


@pytest.mark.gpu
@needs_gpu
def test_parts_of_a_step_are_measured_on_a_gpu(tmp_path):
    small = ["--device", "cuda", *SMALL[2:], "--precision", "bfloat16", "--images", "2", "--varied", "0"]
    assert train_step.main([*small, "--methods", "triton", "--parts", "--out", str(tmp_path / "steps.json")]) == 0
    [row] = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert tuple(row["parts_ms"]) == train_report.PARTS
