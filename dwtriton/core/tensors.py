"""What arguments must be: dense tensors; and what an error calls them."""

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether each value of a tensor lies at its place in memory: it is not sparse."""
    return tensor.layout == torch.strided


def describe(value: object) -> str:
    """Return shape, dtype and, if it is sparse, layout of a tensor, or the type of anything else, for an error."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    layout = "" if is_dense(value) else f" {value.layout}"
    return f"{tuple(value.shape)} {value.dtype}{layout}".replace("torch.", "")
