"""What arguments must be: tensors with values, in memory by rows."""

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor has values (is not on the meta device), each at its place (is not sparse)."""
    return tensor.layout == torch.strided and tensor.device.type != "meta"


def describe(value: object) -> str:
    """Return shape, dtype and whatever is special of a tensor, or the type of anything else, for an error."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    special = f" {value.layout}" * (value.layout != torch.strided) + " on meta" * (value.device.type == "meta")
    return f"{tuple(value.shape)} {value.dtype}{special}".replace("torch.", "")
