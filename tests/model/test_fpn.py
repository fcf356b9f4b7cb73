"""The pyramid's coarse levels under autocast on a CPU."""

import pytest
import torch

from dwtriton.model.fpn import build_fpn


@pytest.mark.parametrize("size", [(3, 2), (6, 3), (8, 2), (5, 7), (1, 1)])
def test_narrow_coarse_levels_are_right_under_bfloat16_autocast(size):
    """A bfloat16 convolution of stride 2 whose output is one column wide reads unwritten memory on some CPUs."""
    torch.manual_seed(0)
    fpn = build_fpn([8, 8, 8], 256).eval()
    features = {f"c{i + 3}": torch.randn(2, 8, size[0] * s, size[1] * s) for i, s in enumerate((4, 2, 1))}
    with torch.no_grad():
        expected = list(fpn(features).values())
        for _ in range(20):
            scratch = [
                torch.full((count,), torch.nan) for count in (100, 1000, 5000, 20000, 100000, 400000) for _ in range(4)
            ]
            del scratch  # what is read without having been written is now likely NaN
            with torch.autocast("cpu", torch.bfloat16):
                levels = list(fpn(features).values())
            for level, truth in zip(levels, expected, strict=True):
                error = (level.float() - truth).abs().max()
                assert error <= 0.02 * truth.abs().max()
