"""The detector: backbone, feature pyramid, head, loss and post-processing in one module."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dwtriton.config.schema import Config
from dwtriton.core.points import pyramid_strides
from dwtriton.core.targets import PackedTargets
from dwtriton.model.backbone import ResNet
from dwtriton.model.fpn import build_fpn
from dwtriton.model.head import DenseHead
from dwtriton.model.losses import SCORES, build_loss
from dwtriton.model.mmdet_names import from_mmdet, to_mmdet
from dwtriton.model.postprocess import Candidates, Pairs, best_candidates, select

SIZE_DIVISOR = 32  # the stride of C5: nearest upsampling aligns levels only if each is twice as large as the next

Detections = list[dict[str, Tensor]]
Targets = Sequence[Mapping[str, Tensor]] | PackedTargets


def build_detector(cfg: Config) -> "DualWeightDetector":
    """Return the detector of a config, in training mode with fresh weights; nothing is loaded or downloaded.

    Raises UserError for settings that do not fit together, and TypeError for anything but a Config.
    """
    if not isinstance(cfg, Config):
        raise TypeError(f"cfg must be a Config, as load_config returns it, not {type(cfg).__name__}")
    return DualWeightDetector(cfg)


class DualWeightDetector(nn.Module):
    """FCOS-like detector trained by Dual Weighting (Li et al., arXiv 2203.09730), or by another `loss.assigner`.

    Images are float [B, 3, H, W], RGB, normalised, zero-padded so that H and W are multiples of 32. `strides` are those
    of the levels, from `cfg.head.finest_stride` to 128.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.strides = pyramid_strides(cfg.head.finest_stride)
        self.backbone = ResNet(cfg.backbone, cfg.train.activation_checkpointing, c2=self.strides[0] == 4)
        self.fpn = build_fpn(self.backbone.out_channels, cfg.head.channels)
        self.head = DenseHead(cfg.head, self.strides, cfg.train.activation_checkpointing)
        self.loss = build_loss(cfg.loss, self.strides)
        self.score = SCORES[cfg.loss.assigner]
        if self.score == "class":  # the loss does not reach the objectness: the branch keeps its first weights
            self.head.objectness_conv.requires_grad_(False)
        self.loss_weights = {
            "loss_cls_pos": cfg.loss.weight_cls_pos,
            "loss_loc": cfg.loss.weight_loc,
            "loss_cls_neg": cfg.loss.weight_cls_neg,
        }
        self.inference_cfg = cfg.inference

    def forward(self, images: Tensor, targets: Targets | None = None) -> dict[str, Tensor] | Detections:
        """Return the losses of a batch, or, in evaluation mode without targets, its detections.

        targets: for each image {"boxes": [G, 4] float xyxy pixels, "labels": [G] int64 in 0..C-1}, or PackedTargets.
        Returns the scalar losses by name, those of Dual Weighting times the weights of the config: training minimises
        their sum. Without targets it returns what `predict` does for images without padding.
        Raises ValueError for images or targets of a wrong shape or dtype, and in training mode without targets.
        """
        if targets is not None:
            losses = self.loss(*self.head_outputs(images), targets)
            return {name: loss * self.loss_weights.get(name, 1.0) for name, loss in losses.items()}
        if self.training:
            raise ValueError("training mode needs targets: detector(images, targets); for detections use predict")
        _check_images(images)
        return self.predict(images, image_sizes=[(images.shape[-2], images.shape[-1])] * len(images))

    def head_outputs(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return (cls_logits, box_distances, objectness), lists over levels; see `DenseHead.forward`."""
        _check_images(images)
        return self.head(list(self.fpn(self.backbone(images)).values()))

    def candidates(self, images: Tensor) -> Candidates:
        """Return the best candidates of each image, from which `select` takes the detections. Compiles as one graph."""
        count = self.inference_cfg.candidates_per_level
        return best_candidates(*self.head_outputs(images), self.strides, count, self.score)

    @torch.inference_mode()
    def predict(
        self,
        images: Tensor,
        image_sizes: Pairs,
        scale_factors: Pairs | None = None,
        *,
        candidates: Callable[[Tensor], Candidates] | None = None,
        **limits: Any,
    ) -> Detections:
        """Return the detections of each image, highest-scoring first, computed in evaluation mode.

        image_sizes[b] = (height, width) before padding; scale_factors[b] = (sx, sy), network pixels per original pixel:
        with them boxes are in pixels of the original image. `candidates` is the method, compiled; `limits` replace
        score_threshold, nms_iou or max_detections of the config. The module is left in the mode that it was in.
        Returns {"boxes": [N, 4] xyxy, "scores": [N], "labels": [N]} for each image.
        """
        training = self.training
        self.eval()
        try:
            found = (candidates or self.candidates)(images)
        finally:
            self.train(training)
        limits = self.inference_cfg.model_dump(include={"score_threshold", "nms_iou", "max_detections"}) | limits
        return select(found, (images.shape[2], images.shape[3]), image_sizes, scale_factors, **limits)

    def load_mmdet_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of an MMDetection checkpoint of Dual Weighting (its `state_dict`), in place.

        Raises UserError that lists every missing, unexpected or mis-shaped tensor; then nothing was loaded.
        """
        self.load_state_dict(from_mmdet(state_dict, self.state_dict()))

    def mmdet_state_dict(self) -> dict[str, Tensor]:
        """Return the weights under MMDetection's names, as in its checkpoints; they share memory with the detector."""
        return to_mmdet(self.state_dict())


def _check_images(images: Tensor) -> None:
    """Raise ValueError unless `images` is a batch that the network can take."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor [B, 3, H, W], not {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be [B, 3, H, W], got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"images must be floating point and normalised by data.mean and data.std, got {images.dtype}")
    height, width = images.shape[-2:]
    if height % SIZE_DIVISOR or width % SIZE_DIVISOR or not height * width:
        multiples = f"both sides must be multiples of {SIZE_DIVISOR}"
        raise ValueError(f"images are {height} x {width}, but {multiples}: pad with zeros at the bottom and right")
