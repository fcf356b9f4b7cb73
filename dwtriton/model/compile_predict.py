"""Inference under torch.compile: from images to candidates in one graph, for any size of image."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dwtriton.model.detector import Detections, DualWeightDetector, evaluating

GRAPHS = 32  # of batches of one image, of several, and with levels of a single row or column


def compile_predict(detector: DualWeightDetector, mode: str = "default") -> Callable[..., Detections]:
    """`detector.predict` with everything up to the decoded candidates compiled.

    `mode` is one of torch.compile's, or "off" for `detector.predict` itself.

    Sizes of images and batches are dynamic: new ones seldom need another graph. Weights are read at every call, so the
    detector may train on in between.
    """
    if mode == "off":
        return detector.predict
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    candidates = torch.compile(detector.candidates, fullgraph=True, dynamic=True, mode=mode)

    @torch.inference_mode()
    def predict(
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]] | Tensor,
        scale_factors: Sequence[tuple[float, float]] | Tensor | None = None,
    ) -> Detections:
        with evaluating(detector):
            found = candidates(images)
        return detector.select(found, images, image_sizes, scale_factors)

    return predict
