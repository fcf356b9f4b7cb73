"""`weights show` describes checkpoints of this package, of MMDetection and other state dicts, part by part."""

import pytest
import torch
import torchvision

from dwtriton import build_detector, load_config
from dwtriton.checkpoints.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from dwtriton.core.errors import UserError
from dwtriton.weights.show import summarise

NAMES = ["zebra", "kite", "owl"]


@pytest.fixture(scope="module")
def cfg():
    small = ["backbone.depth=18", "head.num_classes=3", "head.channels=16", "head.convs=1", "head.groups=4"]
    return load_config("r50_1x", small)


def rows(table):
    """The rows of a table by their first cell."""
    cells = zip(*([str(cell) for cell in column.cells] for column in table.columns))
    return {first: rest for first, *rest in cells}


def count(tensors):
    return f"{sum(tensor.numel() for tensor in tensors):,}"


def test_a_checkpoint_of_a_run(finished):
    path = finished[0] / "last.pt"
    facts, table = summarise(path)
    checkpoint = load_checkpoint(path)
    changes = facts.pop("config")
    assert facts == {
        "kind": "checkpoint of dwtriton",
        "iteration": str(checkpoint.iteration),
        "classes": f"8: {', '.join(checkpoint.class_names)}",
        "optimizer": "included",
        "EMA": "none",
        "not finite": "none",
    }
    assert changes.startswith("r50_1x with description = ")
    assert "; head.convs = 1; " in changes
    assert "head.refine" not in changes
    detector = build_detector(checkpoint.config)
    parts = {"backbone": detector.backbone, "pyramid": detector.fpn, "head": detector.head, "all": detector}
    assert rows(table) == {
        part: [
            str(len(module.state_dict())),
            count(module.state_dict().values()),
            "float32, int64" if part in ("backbone", "all") else "float32",
        ]
        for part, module in parts.items()
    }


def test_an_ema_and_what_is_not_finite(cfg, tmp_path):
    model = build_detector(cfg).state_dict()
    ema = model | {"head.scales.3": torch.tensor(torch.inf), "backbone.bn1.bias": torch.full((64,), torch.nan)}
    save_checkpoint(tmp_path / "ours.pt", Checkpoint(cfg, NAMES, [1, 2, 3], 9, model, ema=ema))
    facts, _ = summarise(tmp_path / "ours.pt")
    assert facts["optimizer"] == "none: the run cannot be resumed"
    assert facts["EMA"] == "included: detection uses it"
    assert facts["not finite"] == "backbone.bn1.bias, head.scales.3"


def test_a_checkpoint_of_mmdetection(cfg, tmp_path):
    state = build_detector(cfg).mmdet_state_dict()
    meta = {"epoch": 12, "iter": 7, "CLASSES": NAMES}
    state["bbox_head.scales.1.scale"] = torch.tensor(torch.nan)
    content = {"meta": meta, "state_dict": state, "optimizer": {"a": [torch.ones(2)]}}
    torch.save(content, tmp_path / "m.pth")
    facts, table = summarise(tmp_path / "m.pth")
    assert (facts["epoch, iteration"], facts["classes"]) == ("12, 7", "3: zebra, kite, owl")
    assert facts["config"] == "fits no shipped config"
    assert facts["optimizer"].startswith("1 tensors: ")
    assert facts["not finite"] == "bbox_head.scales.1.scale"
    assert rows(table)["all"] == [str(len(state)), count(state.values()), "float32, int64"]
    assert rows(table).keys() == {"backbone", "pyramid", "head", "all"}


def test_a_checkpoint_of_mmdetection_names_the_configs_that_it_fits(tmp_path):
    torch.save(build_detector(load_config("shapes")).mmdet_state_dict(), tmp_path / "m.pth")
    assert summarise(tmp_path / "m.pth")[0]["config"] == "fits --cfg shapes or --cfg small"


def test_state_dicts_of_others(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "r.pth")
    facts, table = summarise(tmp_path / "r.pth")
    assert facts == {"kind": "ResNet weights, for `from-torchvision`"}
    assert rows(table)["fc"] == ["2", "513,000", "float32"]
    torch.save({"a": torch.ones(2), "b": torch.ones(2, 3)}, tmp_path / "x.pth")
    facts, table = summarise(tmp_path / "x.pth")
    assert (facts["kind"], rows(table)["all"]) == ("other state dict", ["2", "8", "float32"])


def test_anything_else_is_refused(tmp_path):
    torch.save({"a": 1, "b": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is neither a checkpoint .* it holds a, b$"):
        summarise(tmp_path / "x.pth")
