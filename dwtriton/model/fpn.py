"""Feature pyramid P3 to P7 (Lin et al., arXiv 1612.03144; P6 and P7 as in FCOS, arXiv 1904.01355)."""

from torch import nn
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7


def build_fpn(in_channels: list[int], channels: int) -> FeaturePyramidNetwork:
    """torchvision's pyramid over C3, C4, C5 (of `in_channels`) with P6 = conv(P5) and P7 = conv(relu(P6)).

    All five levels have `channels`. Weights start Xavier-uniform, biases at zero.
    """
    fpn = FeaturePyramidNetwork(in_channels, channels, extra_blocks=LastLevelP6P7(channels, channels))
    for module in fpn.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    return fpn
