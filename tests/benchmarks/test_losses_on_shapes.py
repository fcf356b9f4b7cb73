"""The contest of losses on `shapes`: fair, complete, and torchvision's own loss is really torchvision's."""

import json
import math

import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from benchmarks import losses_on_shapes, losses_report, report
from dwtriton.core.points import STRIDES

SETTINGS = ["head.channels=32", "schedule.warmup_iterations=1"]  # torchvision's head has group norms of 32 groups


def test_the_contest_is_fair_and_its_results_are_complete(tiny, shapes_root, tmp_path, monkeypatch, capsys):
    seen = {name: [] for name in losses_on_shapes.LOSSES}

    def noting(name, losses):
        def noted(model, *arguments):
            seen[name].append(arguments)
            return losses(model, *arguments)

        return noted

    noted = {name: noting(name, losses) for name, losses in losses_on_shapes.LOSSES.items()}
    monkeypatch.setattr(losses_on_shapes, "LOSSES", noted)
    monkeypatch.setattr(losses_on_shapes, "load_config", lambda _name, changes, data_root: tiny(*changes))
    out = tmp_path / "losses_on_shapes" / "cpu.json"
    arguments = ["--device", "cpu", "--iterations", "7", "--lr", "0.01", "--out", str(out)]
    losses_on_shapes.main([*arguments, *(f"--set={setting}" for setting in SETTINGS)])

    own, ours = seen.values()
    assert len(own) == len(ours) == 7  # across the end of an epoch of 6
    for kind, other in zip(own[0][:3], ours[0][:3]):  # the same weights and images
        assert all(torch.equal(level, level_too) for level, level_too in zip(kind, other))
    for (*_, targets), (*_, targets_too) in zip(own, ours):
        assert all(torch.equal(one["boxes"], two["boxes"]) for one, two in zip(targets, targets_too, strict=True))

    results = json.loads(out.read_text())
    assert [(row["loss"], row["lr"]) for row in results["rows"]] == [("torchvision", 0.01), ("dual weighting", 0.01)]
    for row in results["rows"]:
        assert [iteration for iteration, _ in row["curve"]] == [2, 3, 5, 6, 7]
        assert row["curve"][-1][1] == row["AP"]
        assert len(row["losses"]) == 7
        assert row["losses"][-1] < row["losses"][0]
        assert row["ms"] > 0
    table, draw = report.VIEWS["losses_on_shapes"]
    assert table(results) in capsys.readouterr().out
    assert table(results).startswith(losses_report.TABLE_HEAD)
    assert {line.count("|") for line in table(results).splitlines()} == {7}
    out.with_suffix(".png").unlink()
    draw(results, out.with_suffix(".png"))
    assert out.with_suffix(".png").exists()


def test_its_own_losses_are_those_of_torchvision_with_anchors_at_the_centres(tiny):
    torch.manual_seed(0)
    model = losses_on_shapes.SmallFCOS(tiny(*SETTINGS)).train()
    # a size that every stride divides: elsewhere torchvision's anchors are not a stride apart
    images = torch.rand(2, 3, 128, 128)
    targets = [
        {"boxes": torch.tensor([[10.0, 12, 40, 70], [30, 30, 120, 100]]), "labels": torch.tensor([3, 0])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    model.fcos.transform = GeneralizedRCNNTransform(128, 128, [0.0] * 3, [1.0] * 3)
    model.fcos.anchor_generator.cell_anchors = [torch.tensor([[0.0, 0, stride, stride]]) for stride in STRIDES]
    expected = model.fcos(list(images), targets)
    losses = model.own_losses(*model(images), targets)
    assert losses["bbox_regression"] > 0  # there are positives
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])


def test_finished_runs_are_kept_whatever_happens_to_the_next(tiny, shapes_root, tmp_path, monkeypatch):
    def cut_off(*_):
        raise KeyboardInterrupt

    def diverge(model, *arguments):
        return {name: math.nan * loss for name, loss in model.own_losses(*arguments).items()}

    def runs(**losses):
        monkeypatch.setattr(losses_on_shapes, "LOSSES", {name.replace("_", " "): run for name, run in losses.items()})
        arguments = ["--device", "cpu", "--iterations", "5", "--lr", "0.01", "--out", str(out)]
        losses_on_shapes.main([*arguments, *(f"--set={setting}" for setting in SETTINGS)])

    out = tmp_path / "cpu.json"
    monkeypatch.setattr(losses_on_shapes, "load_config", lambda _name, changes, data_root: tiny(*changes))
    with pytest.raises(KeyboardInterrupt):
        runs(torchvision=diverge, dual_weighting=cut_off)
    results = json.loads(out.read_text())
    assert [row["loss"] for row in results["rows"]] == ["torchvision"]
    assert "the losses of iteration 1 are" in results["rows"][0]["skipped"]
    assert out.with_suffix(".png").exists()
    assert {line.count("|") for line in losses_report.markdown_table(results).splitlines()} == {7}

    monkeypatch.setattr(losses_on_shapes, "evaluate_model", lambda *_: {"AP": 0.1, "AP50": 0.3, "AP75": 0.05})
    with pytest.raises(KeyboardInterrupt):
        runs(torchvision=losses_on_shapes.SmallFCOS.own_losses, dual_weighting=cut_off)
    results = json.loads(out.read_text())
    assert [(row["loss"], row["AP"]) for row in results["rows"]] == [("torchvision", 0.1)]
    assert "| torchvision | 0.01 | 0.100 | 0.300 | 0.050 |" in losses_report.markdown_table(results)


def test_too_few_iterations_are_refused(capsys):
    with pytest.raises(SystemExit) as exit_:
        losses_on_shapes.main(["--iterations", "4"])
    assert exit_.value.code == 2
    assert "--iterations must be at least 5" in capsys.readouterr().err
