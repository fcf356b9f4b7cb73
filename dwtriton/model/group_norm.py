"""Group norm (Wu and He, arXiv 1803.08494) with its ReLU, in the memory layout of its input on every device."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class GroupNormReLU(nn.GroupNorm):
    """Group norm and the ReLU after it, for images [B, C, H, W]; the result has layout and dtype of the input.

    On a GPU `F.group_norm` returns contiguous memory, which every convolution behind it would have to copy, and float32
    under autocast: there it is `NormReLU`. On a CPU `F.group_norm` keeps channels_last and is faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, H, W] over the positions and channels of each group, in at least float32."""
        if x.device.type == "cpu":
            return F.relu(super().forward(x), inplace=True)
        return NormReLU.apply(x, self.weight, self.bias, self.num_groups, self.eps)


class NormReLU(torch.autograd.Function):
    """relu(group_norm(x)) in tensor operations that torch.compile fuses into two passes forward and two backward.

    Channels lie side by side in channels_last, so the first pass of each reduces every channel alone; groups are merged
    from the sums of channels. Only x and the result are kept, as the convolutions around it keep them anyway.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        """Map x [B, C, H, W] to its dtype and layout; weight and bias are [C], in at least float32."""
        wide = torch.promote_types(x.dtype, torch.float32)
        variances, means = torch.var_mean(x.to(wide), (2, 3), correction=0)  # [B, C]
        mean = _group_means(means, groups)
        variance = _group_means(variances + (means - mean).square(), groups)
        scale = (variance + eps).rsqrt()
        y = torch.addcmul(_maps(bias), x - _maps(mean), _maps(weight * scale))
        y = F.relu(y.to(x.dtype))  # not in place: torch.compile 2.11 loses gradients of a result with an alias
        ctx.groups = groups
        ctx.save_for_backward(x, y, weight, mean, scale)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias, given that of the result."""
        x, y, weight, mean, scale = ctx.saved_tensors
        grad = torch.where(y > 0, grad, 0)
        centred = x - _maps(mean)
        grad_bias = grad.sum((2, 3), dtype=centred.dtype)  # [B, C], of each image
        grad_weight = (grad * centred).sum((2, 3)) * scale
        cells = x.shape[2] * x.shape[3]
        level = _group_means(weight * grad_bias, ctx.groups) * scale / cells
        slope = _group_means(weight * grad_weight, ctx.groups) * scale.square() / cells
        grad_x = torch.addcmul(_maps(-level), centred, _maps(-slope))
        grad_x = torch.addcmul(grad_x, grad, _maps(weight * scale))
        return grad_x.to(x.dtype), grad_weight.sum(0), grad_bias.sum(0), None, None


def _group_means(channels: Tensor, groups: int) -> Tensor:
    """Replace each of channels [B, C] by the mean of its group."""
    grouped = channels.unflatten(1, (groups, -1))  # [B, G, C/G]
    return grouped.mean(2, keepdim=True).expand_as(grouped).flatten(1)


def _maps(channels: Tensor) -> Tensor:
    """Shape channels [..., C] as maps [..., C, 1, 1]."""
    return channels[..., None, None]
