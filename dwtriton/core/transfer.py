"""Copies between main memory and a device that the host does not wait for."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of main memory on a device; a GPU fetches it from page-locked memory when its turn comes."""
    if torch.device(device).type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class AsyncHostCopy:
    """Values on their way from a device to main memory."""

    def __init__(self, values: Tensor) -> None:
        """Order the copy, behind everything that is already queued on the device."""
        on_gpu = values.device.type == "cuda"
        self._copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=on_gpu)
        self._copy.copy_(values.detach(), non_blocking=True)
        self._done = torch.cuda.Event() if on_gpu else None
        if self._done is not None:
            self._done.record(torch.cuda.current_stream(values.device))

    def read(self) -> Tensor:
        """The values, in main memory. Waits for the copy, not for what was queued on the device after it."""
        if self._done is not None:
            self._done.synchronize()
        return self._copy
