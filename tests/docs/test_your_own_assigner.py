"""The code of docs/your-own-assigner.md, run."""

import re
from pathlib import Path

import torch

from dwtriton.core.points import STRIDES, pyramid_points

PAGE = Path(__file__).parents[2] / "docs" / "your-own-assigner.md"


def test_the_page_trains_draws_and_equals_its_oracle():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 96, generator=generator)
    corner = torch.rand(9, 2, generator=generator) * 60
    boxes = torch.cat((corner, corner + 5 + 40 * torch.rand(9, 2, generator=generator)), 1)
    targets = [{"boxes": boxes, "labels": torch.arange(9) % 8}, {"boxes": boxes[:0], "labels": torch.arange(0)}]
    names = {"images": images, "targets": targets}
    for code in re.findall(r"^```py(?:thon)?\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), names)
    assert all(loss.isfinite() and loss > 0 for loss in names["losses"].values())
    assert names["detector"].head.box_conv.weight.grad.abs().sum() > 0
    expected = [names["nearest_box"](p, boxes.tolist()) for p in pyramid_points([(8, 12)], STRIDES[:1]).tolist()]
    assert names["picture"].flatten().tolist() == expected
    assert len(set(expected)) > 3
