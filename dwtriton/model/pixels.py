"""The detector with its preprocessing: uint8 pixels in, losses or detections out."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dwtriton.config.schema import DataConfig
from dwtriton.core.targets import PackedTargets
from dwtriton.model.detector import Detections, DualWeightDetector
from dwtriton.model.postprocess import Candidates, Pairs

INFERENCE_GRAPHS = 32  # for batches of one image, of several, and with levels of a single row or column


class PixelDetector(nn.Module):
    """A detector for images as they are decoded: it normalises them by `data.mean` and `data.std` of the config.

    Images are uint8 [B, 3, H, W], RGB in 0..255, padded at the bottom and right so that H and W are multiples of 32.
    `image_sizes`, [B, 2] or a list, are (h, w) before padding: the network sees 0 beyond them. Without them the padding
    must hold the mean, which becomes 0 as well.
    Training, inference and export all go through this module. It lies on the device of the detector and shares its
    weights; checkpoints hold the state dict of `detector`, which has neither mean nor std.
    """

    mean: Tensor  # [3, 1, 1]
    std: Tensor  # [3, 1, 1]

    def __init__(self, detector: DualWeightDetector, cfg: DataConfig) -> None:
        super().__init__()
        self.detector = detector
        device = next((parameter.device for parameter in detector.parameters()), None)
        for name in ("mean", "std"):
            values = torch.tensor(getattr(cfg, name), device=device).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, images: Tensor, image_sizes: Pairs, targets: PackedTargets) -> dict[str, Tensor]:
        """Return the three losses of a batch, as `detector(images, targets)` does."""
        return self.detector(self.normalise(images, image_sizes), targets)

    def normalise(self, images: Tensor, image_sizes: Pairs | None = None) -> Tensor:
        """Return float32 [B, 3, H, W]: (images - mean) / std, and 0 in the padding. The memory layout is kept."""
        images = (images - self.mean).div_(self.std)
        if image_sizes is None:
            return images
        sizes = torch.as_tensor(image_sizes, device=images.device)  # [B, 2]
        rows, columns = (
            torch.arange(side, device=images.device) < limit
            for side, limit in zip(images.shape[2:], sizes.T[..., None])
        )  # [B, H], [B, W]
        return images.mul_(rows[:, None, :, None] & columns[:, None, None, :])

    def head_outputs(
        self, images: Tensor, image_sizes: Pairs | None = None
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return (cls_logits, box_distances, objectness), lists over levels; see `DenseHead.forward`."""
        return self.detector.head_outputs(self.normalise(images, image_sizes))

    def candidates(self, images: Tensor, image_sizes: Pairs | None = None) -> Candidates:
        """Return the best candidates of each image, as `detector.candidates` does."""
        return self.detector.candidates(self.normalise(images, image_sizes))

    @torch.inference_mode()
    def predict(
        self, images: Tensor, image_sizes: Pairs, scale_factors: Pairs | None = None, **options: Any
    ) -> Detections:
        """Return the detections of each image, as `detector.predict` does. Images may lie on any device."""
        images = self.normalise(images.to(self.mean.device), image_sizes)
        return self.detector.predict(images, image_sizes, scale_factors, **options)


def compile_predict(network: PixelDetector, mode: str = "default") -> Callable[..., Detections]:
    """Return `network.predict` with everything from normalised images to decoded candidates compiled as one graph.

    `mode` is one of torch.compile's, or "off" for `network.predict` itself. Sizes of images and batches are dynamic:
    new ones seldom need another graph. Weights are read at every call, so the detector may go on training in between.
    """
    if mode == "off":
        return network.predict
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, INFERENCE_GRAPHS)
    candidates = torch.compile(network.detector.candidates, fullgraph=True, dynamic=True, mode=mode)
    return partial(network.predict, candidates=candidates)
