"""The summary of a checkpoint says what is in it, part by part, whoever wrote it."""

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
        "what": "checkpoint of dwtriton",
        "iteration": str(checkpoint.iteration),
        "classes": f"8: {', '.join(checkpoint.class_names)}",
        "optimizer": "its state is here",
        "moving average": "none",
        "not finite": "none",
    }
    assert changes.startswith("shapes with data.batch_size = 4 (16 there); ")
    assert "head.convs = 1 (2 there)" in changes
    assert "description" not in changes
    detector = build_detector(checkpoint.config)
    parts = {"backbone": detector.backbone, "pyramid": detector.fpn, "head": detector.head, "all": detector}
    assert rows(table) == {
        part: [
            str(len(module.state_dict())),
            count(module.state_dict().values()),
            "float32, int64" if part in ("backbone", "all") else "float32",
            count(module.parameters()),
            "0",
        ]
        for part, module in parts.items()
    }


def test_frozen_parts_a_moving_average_and_what_is_not_finite(cfg, tmp_path):
    detector = build_detector(cfg)
    model = detector.state_dict()
    ema = model | {"head.scales.3": torch.tensor(torch.inf), "backbone.bn1.bias": torch.full((64,), torch.nan)}
    save_checkpoint(tmp_path / "ours.pt", Checkpoint(cfg, NAMES, [1, 2, 3], 9, model, ema=ema))
    facts, table = summarise(tmp_path / "ours.pt")
    assert facts["optimizer"] == "none: starts or evaluates, cannot be resumed"
    assert facts["moving average"] == "beside the trained weights; detection uses it"
    assert facts["not finite"] == "ema: backbone.bn1.bias, ema: head.scales.3"
    frozen = [parameter for parameter in detector.parameters() if not parameter.requires_grad]
    assert frozen
    assert rows(table)["backbone"][-1] == rows(table)["all"][-1] == count(frozen)
    assert rows(table)["head"][-1] == "0"


def test_a_shipped_config_is_named_alone(tmp_path):
    cfg = load_config("shapes")
    state = build_detector(cfg).state_dict()
    save_checkpoint(tmp_path / "ours.pt", Checkpoint(cfg, list("abcdefgh"), list(range(8)), 9, state))
    assert summarise(tmp_path / "ours.pt")[0]["config"] == "shapes"


def test_a_checkpoint_of_mmdetection(cfg, tmp_path):
    state = build_detector(cfg).mmdet_state_dict()
    meta = {"epoch": 12, "iter": 7, "CLASSES": NAMES}
    module = {f"module.{name}": tensor for name, tensor in state.items()} | {
        "module.bbox_head.scales.1.scale": torch.tensor(torch.nan)
    }
    content = {"meta": meta, "state_dict": state, "ema_state_dict": module, "optimizer": {"a": [torch.ones(2)]}}
    torch.save(content, tmp_path / "m.pth")
    facts, table = summarise(tmp_path / "m.pth")
    assert (facts["epoch, iteration"], facts["classes"]) == ("12, 7", "3: zebra, kite, owl")
    assert facts["config"].startswith("shapes: ")
    assert facts["config"].endswith(" tensors differ")
    assert facts["moving average"] == "in place of the trained weights, which are beside it"
    assert facts["optimizer"].startswith("1 tensors: ")
    assert facts["not finite"] == "trained: bbox_head.scales.1.scale"
    assert rows(table)["all"] == [str(len(state)), count(state.values()), "float32, int64"]
    assert rows(table).keys() == {"backbone", "pyramid", "head", "all"}


@pytest.mark.parametrize("network", ["resnet18", "resnext50_32x4d"])
def test_weights_of_torchvision(network, tmp_path):
    state = torchvision.models.get_model(network, weights=None).state_dict()
    older = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(older, tmp_path / "r.pth")
    facts, table = summarise(tmp_path / "r.pth")
    assert facts["what"].startswith(f"state dict of torchvision's {network}; ")
    assert rows(table)["classifier"][0] == "2"
    assert rows(table)["backbone"][0] == str(len(older) - 2)


def test_anything_else_is_refused(tmp_path):
    torch.save({"a": 1, "b": torch.ones(2)}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is neither a checkpoint .* it holds a, b$"):
        summarise(tmp_path / "x.pth")
