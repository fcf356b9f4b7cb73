"""The table of a network's parts: its figures against sums and products made by hand."""

import json

import pytest
import torch

from benchmarks.flops import image_flops
from dwtriton import summary
from dwtriton.config.load import load_config
from dwtriton.model.detector import build_detector
from dwtriton.summary import PARTS, part_flops


def parts_of(call, *arguments):
    code, printed, error = call(summary, *arguments, "--json")
    assert (code, error, printed.count("\n")) == (0, "", 1)
    return json.loads(printed)


def test_parameters_are_those_of_the_detector(call):
    found = parts_of(call, "--cfg", "r50_1x")
    with torch.device("meta"):
        detector = build_detector(load_config("r50_1x"))
    parameters = list(detector.parameters())
    everything = found["parts"].pop("all")
    assert everything["parameters"] == sum(p.numel() for p in parameters)
    assert everything["trainable"] == sum(p.numel() for p in parameters if p.requires_grad)
    assert found["parts"].keys() == set(PARTS)
    for key in everything:
        assert everything[key] == sum(row[key] for row in found["parts"].values())
    frozen = 64 * 3 * 49 + 64 * 2 + sum(p.numel() for p in detector.backbone.layer1.parameters())
    assert everything["parameters"] - everything["trainable"] == frozen
    assert (found["size"], found["points"]) == ([800, 1344], 22400)


@pytest.mark.parametrize(("convs", "classes"), [(1, 3), (4, 80)])
def test_operations_of_the_pyramid_and_the_head_are_two_for_each_weight_and_output(convs, classes):
    channels, points = 32, [8 * 12, 4 * 6, 2 * 3, 1 * 2, 1 * 1]  # of images of 64x96
    overrides = [f"head.convs={convs}", f"head.num_classes={classes}", f"head.channels={channels}"]
    flops = part_flops(load_config("shapes", overrides), (64, 96))
    tower = convs * channels * channels * 9
    head = 2 * sum(points) * (2 * tower + (classes + 4 + 1) * channels * 9)
    lateral = sum(p * c * channels for p, c in zip(points, (128, 256, 512)))  # 1x1 from C3, C4, C5 of R-18
    fpn = 2 * (lateral + sum(points) * channels * channels * 9)
    assert (flops["head"], flops["fpn"]) == (head, fpn)


def test_operations_of_a_backbone_are_those_of_its_convolutions():
    """R-18 at 64x96: the stem, then two blocks of two 3x3 convolutions a stage, the later ones with a 1x1 shortcut."""
    macs = 32 * 48 * 64 * 3 * 49
    width = 64
    for channels, cells in ((64, 16 * 24), (128, 8 * 12), (256, 4 * 6), (512, 2 * 3)):
        macs += cells * channels * 9 * (width + 3 * channels)
        macs += cells * channels * width * (width != channels)
        width = channels
    assert part_flops(load_config("shapes"), (64, 96))["backbone"] == 2 * macs


@pytest.mark.parametrize("overrides", [[], ["head.refine=true", "backbone.depth=50", "backbone.deformable=true"]])
def test_the_parts_add_up_to_the_image(overrides):
    cfg = load_config("shapes", overrides)
    assert sum(part_flops(cfg, (64, 96)).values()) == image_flops(cfg, (64, 96), training=False)


def test_people_get_a_table_and_scripts_nothing_but_json(call):
    arguments = ["--cfg", "shapes", "--size", "160x224", "--set", "head.convs=4"]
    code, printed, _ = call(summary, *arguments)
    found = parts_of(call, *arguments)
    assert code == 0
    for part, row in found["parts"].items():
        line = next(line for line in printed.splitlines() if f" {part} " in line)
        assert f"{row['parameters']:,}" in line
        assert f"{row['flops'] / 1e9:.1f}" in line
    assert "levels 20x28, 10x14, 5x7, 3x4, 2x2: 751 points, 6008 class logits an image" in printed
    assert call(summary, *arguments, "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg", "r50_2x"], "did you mean 'r50_1x'?"),
        (["--cfg", "shapes", "--size", "100x100"], "multiples of 32 pixels, such as 800x1344, not '100x100'"),
        (["--cfg", "shapes", "--size", "0x32"], "not '0x32'"),
        (["--cfg", "shapes", "--set", "head.groups=7"], "head.groups = 7 does not divide head.channels"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message, call):
    code, printed, error = call(summary, *arguments)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert message in error
