"""Files whose network computes something else than ours with equal tensors are refused; `show` says the same."""

import pytest
import torch

from dwtriton import build_detector
from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.checkpoints.mmdet_config import read_settings
from dwtriton.checkpoints.mmdet_file import MmdetFile
from dwtriton.model.mmdet_names import CENTER_PRIOR
from dwtriton.weights import __main__ as command
from dwtriton.weights.show import summarise

SMALL = ["backbone.depth=18", "head.num_classes=3", "head.channels=16", "head.convs=1", "head.groups=4"]
CFG = ["--cfg", "r50_1x", *(part for key in SMALL for part in ("--set", key))]
RELEASED = """
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(type='FCOS', backbone=dict(type='ResNet', depth=50, style='pytorch'), bbox_head=dict(type='DWHead'))
coder = dict(mean=[0.0, 0.0, 0.0, 0.0])
"""
DOCUMENTED = """
model = dict(
    data_preprocessor={'mean': [123.675, 116.28, 103.53], 'std': [58.395, 57.12, 57.375], 'bgr_to_rgb': True},
    backbone=dict(style='pytorch'),
    bbox_head=dict(type='DualWeightHead', norm_on_bbox=True, centerness_on_reg=True))
"""


@pytest.fixture
def convert(small_config, tmp_path, call):
    """convert(meta, constants=True, *settings): write an MMDetection file and convert it."""
    torch.manual_seed(0)
    state = build_detector(small_config()).mmdet_state_dict()

    def run(meta, constants=True, *settings):
        kept = {name: tensor for name, tensor in state.items() if constants or name not in CENTER_PRIOR}
        content = {"meta": {"CLASSES": ("a", "b", "c"), **meta}, "state_dict": kept}
        torch.save(content, tmp_path / "m.pth")
        out = tmp_path / "o.pt"
        code, printed, error = call(command, "from-mmdet", tmp_path / "m.pth", *CFG, *settings, "--out", out)
        assert (code == 0) == out.exists()
        return code, " ".join(printed.split()), error

    return run


@pytest.mark.parametrize(("meta", "constants"), [({"config": RELEASED}, True), ({"cfg": DOCUMENTED}, False)])
def test_the_released_and_the_documented_head_are_converted(meta, constants, convert, small_config, tmp_path):
    code, printed, error = convert(meta, constants)
    assert code == 0, error
    assert "note:" not in printed
    assert ("left out: the 2 constants" in printed) == constants
    assert load_checkpoint(tmp_path / "o.pt").model.keys() == build_detector(small_config()).state_dict().keys()


@pytest.mark.parametrize(
    ("config", "constants", "message"),
    [
        (RELEASED.replace("'pytorch'", '"caffe"'), True, "a ResNet of caffe style"),
        (DOCUMENTED.replace("'pytorch'", "'caffe'"), False, "a ResNet of caffe style"),
        (RELEASED.replace("to_rgb=True", "to_rgb=False"), True, "takes images as BGR"),
        (DOCUMENTED.replace("'bgr_to_rgb': True", "'bgr_to_rgb': False"), False, "takes images as BGR"),
        (
            DOCUMENTED.replace("norm_on_bbox=True", "norm_on_bbox=False"),
            False,
            "an FCOS head without norm_on_bbox=True",
        ),
        (DOCUMENTED.replace(", centerness_on_reg=True", ""), False, "an FCOS head without norm_on_bbox=True"),
        (RELEASED, False, "an FCOS head without norm_on_bbox=True"),
        (None, False, "lacks bbox_head.center_prior.mean and bbox_head.center_prior.sigma, and has no config"),
    ],
)
def test_what_would_be_converted_wrongly_is_refused(config, constants, message, convert):
    code, _, error = convert({"config": config} if config else {}, constants)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1


def test_another_normalisation_has_to_be_that_of_the_config(convert):
    meta = {"config": RELEASED.replace("58.395, 57.12, 57.375", "1.0, 1.0, 1.0")}
    code, _, error = convert(meta)
    assert code == 2
    assert "add --set 'data.std=[1.0, 1.0, 1.0]'" in error
    assert convert(meta, True, "--set", "data.std=[1.0, 1.0, 1.0]")[0] == 0


@pytest.mark.parametrize("config", [None, "model = dict(", 7])
def test_a_file_without_a_config_that_can_be_read_is_converted_with_a_note(config, convert):
    code, printed, _ = convert({"config": config})
    assert code == 0
    assert "note: the file has no config to check" in printed


def test_nothing_in_a_config_is_run(tmp_path):
    text = f"style = open({str(tmp_path / 'ran')!r}, 'w')\nmodel = dict(style=open({str(tmp_path / 'ran')!r}, 'w'))"
    assert read_settings(text)["style"] == []
    assert not (tmp_path / "ran").exists()


def test_show_agrees(convert, tmp_path, monkeypatch):
    monkeypatch.setattr(MmdetFile, "fitting_configs", lambda file: "those of another test")
    refusal = "which `from-mmdet` refuses: the file has a ResNet of caffe style"
    assert convert({"config": RELEASED.replace("pytorch", "caffe")})[0] == 2
    assert refusal in summarise(tmp_path / "m.pth")[0]["kind"]
    assert convert({"config": RELEASED})[0] == 0
    assert "refuses" not in summarise(tmp_path / "m.pth")[0]["kind"]
