"""Deformable convolution, version 2 (Zhu et al., arXiv 1811.11168)."""

import math
from typing import Any, Self

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv2d(nn.Conv2d):
    """A convolution whose K taps sample the input at learned positions and are scaled by learned masks in 0..1.

    Arguments as for nn.Conv2d, with zero padding given in numbers. A plain convolution of the same geometry,
    `conv_offset`, predicts 3 K channels: (row, column) offsets of the K taps in cells of the input, then K mask logits.
    All groups share them. Sampling is bilinear, with zeros outside the map.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        geometry: Any = (self.kernel_size, self.stride, self.padding, self.dilation)
        self.conv_offset = nn.Conv2d(self.in_channels, 3 * math.prod(self.kernel_size), *geometry)
        self.reset_parameters()

    @classmethod
    def like(cls, conv: nn.Conv2d) -> Self:
        """Return a deformable convolution of the geometry of `conv`, with fresh weights."""
        geometry = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
        return cls(conv.in_channels, conv.out_channels, *geometry, bias=conv.bias is not None)

    def reset_parameters(self) -> None:
        """Initialise as released: weights uniform within 1/sqrt(fan-in), bias 0, offsets 0, masks 0.5."""
        super().reset_parameters()
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if hasattr(self, "conv_offset"):  # not yet when nn.Conv2d's constructor calls
            for parameter in self.conv_offset.parameters():
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in_channels, H, W] to [B, out_channels, H', W'] in the dtype of x, computed in at least float32."""
        taps = math.prod(self.kernel_size)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        with torch.autocast(x.device.type, enabled=False):  # deform_conv2d has no autocast on a CPU
            offset, mask = self.conv_offset(wide).split([2 * taps, taps], 1)  # [B, 2K, H', W'], [B, K, H', W']
            # At a NaN position deform_conv2d reads out of bounds; the mask carries the NaN to the output instead.
            offset, mask = offset.nan_to_num(), mask.sigmoid()
            out = deform_conv2d(wide, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        return out.to(x.dtype)
