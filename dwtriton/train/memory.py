"""Memory of a training step, estimated without a GPU and without computing anything."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dwtriton.config.load import override_config
from dwtriton.config.schema import Config
from dwtriton.model.detector import build_detector
from dwtriton.train.step import AUTOCAST

STATE_BYTES = 3 * 4  # of a trainable parameter: itself, its gradient, its momentum in float32
DEVICE = "cuda"  # its autocast decides the dtypes; nothing is allocated there


def kept_bytes(cfg: Config, images: int, size: tuple[int, int]) -> int:
    """Return the bytes that autograd keeps for the backward pass of `images` images of (h, w), without parameters.

    `train.precision` is settled. The network runs on fake tensors, which have a shape, a dtype and a device but no
    content. A GPU needs more: temporary tensors, cuDNN's workspace, fragmentation and the CUDA context.
    """
    cfg = override_config(cfg, ["loss.backend=torch"])
    precision = AUTOCAST.get(cfg.train.precision)
    with FakeTensorMode(), torch.device(DEVICE):
        detector = build_detector(cfg).train()
        batch = torch.empty(images, 3, *size).to(memory_format=torch.channels_last)
        parameters = {p.untyped_storage()._cdata for p in detector.parameters()}
        kept = {}  # storages; held, since an address that is freed and used again would be counted once

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in parameters:
                kept[storage._cdata] = storage
            return tensor

        before = torch.is_autocast_enabled(DEVICE), torch.get_autocast_dtype(DEVICE)
        try:  # torch.autocast refuses a device that is not there
            torch.set_autocast_enabled(DEVICE, precision is not None)
            torch.set_autocast_dtype(DEVICE, precision or before[1])
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outputs = detector.head_outputs(batch)
        finally:
            torch.set_autocast_enabled(DEVICE, before[0])
            torch.set_autocast_dtype(DEVICE, before[1])
        del outputs
        return sum(storage.nbytes() for storage in kept.values())


def state_bytes(cfg: Config) -> int:
    """Return the bytes of weights, gradients and momenta in float32."""
    with torch.device("meta"):
        parameters = list(build_detector(cfg).parameters())
    return sum(p.numel() * (STATE_BYTES if p.requires_grad else 4) for p in parameters)
