"""Feature pyramid P3 to P7, or P2 to P7 (Lin et al., arXiv 1612.03144; P6 and P7 as in FCOS, arXiv 1904.01355)."""

import torch
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7


def build_fpn(in_channels: list[int], channels: int) -> FeaturePyramidNetwork:
    """Return torchvision's pyramid over C3, C4, C5 (of `in_channels`) with P6 = conv(P5) and P7 = conv(relu(P6)).

    It begins with C2 if there are four `in_channels`. All levels have `channels`. Weights start Xavier-uniform, biases
    at zero.
    """
    fpn = FeaturePyramidNetwork(in_channels, channels, extra_blocks=CoarseLevels(channels, channels))
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return fpn


class CoarseLevels(LastLevelP6P7):
    """P6 and P7, on a CPU in float32 even under autocast.

    On CPUs with AMX, the bfloat16 convolution of stride 2 of torch 2.11 reads uninitialised memory where its output is
    one column wide: results change between calls and may be NaN. Only these two levels become so narrow.
    """

    def forward(self, p: list[Tensor], c: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        """Append P6 and P7 to the levels `p`; `c` and `names` are those of torchvision's ExtraFPNBlock."""
        p5 = p[-1].to(torch.promote_types(p[-1].dtype, torch.float32))
        with torch.autocast("cpu", enabled=False):
            (_, p6, p7), names = super().forward([p5], c, names)
        return [*p, p6, p7], names
