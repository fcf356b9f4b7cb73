"""torchvision's residual blocks, with batch norms on stored statistics folded into the convolutions before them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet


def conv_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Return norm(conv(x)) for x [B, C, H, W].

    In evaluation mode a batch norm is an affine map. Compiled and in half precision it is folded: its factor goes into
    the weights of the convolution and its shift into what comes after, which both still train. The result of the
    convolution is then neither read by a pass of its own nor kept for the backward pass. Eager, folding would save
    nothing; in float32 rounding stays that of the batch norm.
    """
    folds = torch.compiler.is_compiling() and torch.is_autocast_enabled(x.device.type)
    mean, var = norm.running_mean, norm.running_var
    if not folds or norm.training or type(conv) is not nn.Conv2d or mean is None or var is None:
        return norm(conv(x))
    factor = norm.weight * (var + norm.eps).rsqrt()  # [C_out]
    shift = norm.bias - mean * factor
    weight = conv.weight * factor[:, None, None, None]
    y = F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    return (y + shift[:, None, None]).to(y.dtype)  # added in float32


def _shortcut(downsample: Any, x: Tensor) -> Tensor:
    """Return x, or what a convolution and its norm make of it."""
    if downsample is None:
        return x
    conv, norm = downsample
    return conv_norm(conv, norm, x)


class BasicBlock(resnet.BasicBlock):
    """Two 3x3 convolutions beside a shortcut (He et al., arXiv 1512.03385)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, C', H / stride, W / stride]."""
        out = self.relu(conv_norm(self.conv1, self.bn1, x))
        out = conv_norm(self.conv2, self.bn2, out)
        out += _shortcut(self.downsample, x)
        return self.relu(out)


class Bottleneck(resnet.Bottleneck):
    """A 1x1, a 3x3 and a 1x1 convolution beside a shortcut (He et al., arXiv 1512.03385)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, H, W] to [B, C', H / stride, W / stride]."""
        out = self.relu(conv_norm(self.conv1, self.bn1, x))
        out = self.relu(conv_norm(self.conv2, self.bn2, out))
        out = conv_norm(self.conv3, self.bn3, out)
        out += _shortcut(self.downsample, x)
        return self.relu(out)
