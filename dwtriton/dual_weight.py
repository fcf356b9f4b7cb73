"""The Dual Weighting loss and label assigner as modules: input checks, choice of backend, normalisers across ranks."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from dwtriton import formulas, reference
from dwtriton.errors import UserError
from dwtriton.points import STRIDES, level_points
from dwtriton.targets import PackedTargets, check_packed, check_values, concatenate_targets

Targets = Sequence[Mapping[str, Tensor]] | PackedTargets


class DualWeights(NamedTuple):
    """The weights of one image at P points, for its G boxes that are not crowd and C classes; all are constants."""

    points: Tensor  # (P, 2) x and y in pixels, finest level first, each row by row
    inside: Tensor  # (P, G) bool: point strictly inside the box
    iou: Tensor  # (P, G) of the predicted box with the ground truth; 0 outside
    prior: Tensor  # (P, G) centre prior; 0 outside
    score: Tensor  # (P, C) joint score: classification times objectness
    pos: Tensor  # (P, G) positive weight w_pos
    neg: Tensor  # (P, C) negative weight N, 0 at ignored points; the paper's negative weight is neg * score**2


class _DualWeighting(nn.Module):
    """What the loss and the assigner share: settings, input checks and the choice of backend."""

    def __init__(self, strides: Sequence[int] = STRIDES, soft_prior: bool = True, backend: str = "auto") -> None:
        super().__init__()
        self.strides = tuple(strides)
        if not self.strides or not all(stride > 0 for stride in self.strides):
            raise ValueError(f"strides must be positive pixels, one for each level, not {self.strides}")
        self.soft_prior = soft_prior
        self.backend = backend
        self._sums = _backend_sums(backend)

    def extra_repr(self) -> str:
        return f"strides={self.strides}, soft_prior={self.soft_prior}, backend={self.backend!r}"

    def _check(
        self,
        cls_logits: Sequence[Tensor],
        box_distances: Sequence[Tensor],
        objectness: Sequence[Tensor],
        given: Targets,
    ) -> PackedTargets:
        """Raise ValueError unless everything fits together; returns the targets packed on the logits' device."""
        _check_levels(self.strides, cls_logits, box_distances, objectness)
        batch, num_classes = cls_logits[0].shape[:2]
        device = cls_logits[0].device
        packed = given if isinstance(given, PackedTargets) else concatenate_targets(given)
        check_packed(packed)
        if packed.batch_size != batch:
            raise ValueError(f"targets of {packed.batch_size} images for logits of {batch}")
        if packed.boxes.device.type == "cpu" and not torch.compiler.is_compiling():
            check_values(packed, num_classes)
        if isinstance(given, PackedTargets) and packed.boxes.device != device:
            raise ValueError(f"packed targets lie on {packed.boxes.device}, logits on {device}: pack them on {device}")
        return packed.to(device)


class DualWeightLoss(_DualWeighting):
    """Losses of Dual Weighting (CVPR 2022) from the outputs of a dense detection head.

    `strides`: of the pyramid levels in pixels, finest first. `soft_prior`: False thresholds the centre prior at 0.3.
    `backend`: "auto" or "torch". Raises ValueError for settings out of range.
    """

    def forward(
        self,
        cls_logits: Sequence[Tensor],
        box_distances: Sequence[Tensor],
        objectness: Sequence[Tensor],
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Losses of a batch: 0-d `loss_cls_pos`, `loss_loc` and `loss_cls_neg`; a detector minimises their sum.

        For each level l: `cls_logits[l]` (B, C, H, W); `box_distances[l]` (B, 4, H, W), left, top, right, bottom >= 0
        from the point to the predicted sides, in pixels; `objectness[l]` (B, 1, H, W) logits. Any floating dtype and
        memory format; arithmetic is float32 (float64 where an input is), also under autocast.
        `targets`: a list with one dict for each image as for `pack_targets`, or its result. On CPU tensors their values
        are checked; on other devices an invalid label or box makes all losses NaN.
        The normalisers are means over all ranks where torch.distributed is initialised: call it on every rank alike.
        Raises ValueError, naming level or image, for whatever does not fit.
        """
        packed = self._check(cls_logits, box_distances, objectness, targets)
        with torch.autocast(cls_logits[0].device.type, enabled=False):
            sums = self._sums(cls_logits, box_distances, objectness, packed, self.strides, self.soft_prior)
            pos_norm, neg_norm = _normalisers(sums)
            return {
                "loss_cls_pos": sums.cls_pos / pos_norm,
                "loss_loc": sums.loc / pos_norm,
                "loss_cls_neg": sums.cls_neg / neg_norm,
            }


class DualWeightAssigner(_DualWeighting):
    """The weights behind the loss, dense, for people to look at and for other losses; not used in training.

    Settings are those of `DualWeightLoss`.
    """

    @torch.no_grad()
    def forward(
        self,
        cls_logits: Sequence[Tensor],
        box_distances: Sequence[Tensor],
        objectness: Sequence[Tensor],
        targets: Targets,
    ) -> list[DualWeights]:
        """The weights of each image; inputs and errors are those of `DualWeightLoss`."""
        packed = self._check(cls_logits, box_distances, objectness, targets)
        inputs = (*cls_logits, *box_distances, *objectness)
        dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in inputs) else torch.float32
        sizes = [level.shape[2:] for level in cls_logits]
        levels = [level_points(*size, stride, packed.boxes.device, dtype) for size, stride in zip(sizes, self.strides)]
        points = torch.cat(levels)
        strides = torch.cat([points.new_full((len(level),), stride) for level, stride in zip(levels, self.strides)])
        image_of_row = packed.image_index()
        labels = packed.labels.clamp(
            0, cls_logits[0].shape[1] - 1
        )  # unchecked on a device, where it must not go astray
        results = []
        with torch.autocast(points.device.type, enabled=False):
            for image in range(packed.batch_size):
                z, d, u = (
                    torch.cat([level[image].flatten(1) for level in kind], 1).to(dtype)
                    for kind in (cls_logits, box_distances, objectness)
                )
                truth, crowd = (mask & (image_of_row == image) for mask in (packed.box_mask(), packed.crowd_mask()))
                corners = packed.boxes.to(dtype)
                results.append(
                    _image_weights(
                        points, strides, z, d, u, corners[truth], labels[truth], corners[crowd], self.soft_prior
                    )
                )
        return results


def _image_weights(
    points: Tensor,  # [P, 2]
    strides: Tensor,  # [P]
    z: Tensor,  # [C, P]
    d: Tensor,  # [4, P]
    u: Tensor,  # [1, P]
    boxes: Tensor,  # [G, 4]
    labels: Tensor,  # [G]
    crowds: Tensor,  # [K, 4]
    soft_prior: bool,
) -> DualWeights:
    places = points.T[:, :, None]  # [2, P, 1]
    corners = boxes.T[:, None, :]  # [4, 1, G]
    sides = formulas.box_sides(places, corners)  # [4, P, G]
    inside = (sides > 0).all(0)
    overlap = formulas.overlap(d[:, :, None], sides)
    iou = overlap.iou.where(inside, 0)
    prior = formulas.center_prior(places, corners, strides[:, None], soft_prior).where(inside, 0)
    score = (z.sigmoid() * u.sigmoid()).T
    t = formulas.alignment(score[:, labels], overlap.reg_loss).where(inside, 0)
    denominator = formulas.positive_mass(t, prior).sum(0, dtype=torch.float64).clamp(min=1e-12).to(t.dtype)
    pos = formulas.positive_weight(t, prior, denominator)

    deficit = formulas.iou_deficit(iou)
    deficit_min = deficit.masked_fill(~inside, torch.inf).amin(0)
    deficit_max = deficit.masked_fill(~inside, -torch.inf).amax(0).clamp(max=1)
    stretched = formulas.negative_weight(iou, deficit_min, deficit_max)
    number = torch.arange(1, len(labels) + 1, device=points.device) * inside  # [P, G] from 1; 0 is no box
    last = torch.zeros_like(score, dtype=torch.int64).scatter_reduce_(1, labels.expand_as(number), number, "amax")
    neg = torch.cat((torch.ones_like(points[:, :1]), stretched), 1).gather(1, last)  # [P, C]
    ignored = (formulas.box_sides(places, crowds.T[:, None, :]) > 0).all(0).any(1)
    return DualWeights(points, inside, iou, prior, score, pos, neg.masked_fill_(ignored[:, None], 0))


def _backend_sums(backend: str) -> Callable[..., reference.Sums]:
    """The function of a backend that sums the losses of a batch."""
    if backend in ("auto", "torch"):
        return reference.dual_weight_sums
    if backend == "triton":
        raise UserError('this version has no Triton kernels; use backend="torch", which runs on every device')
    raise UserError(f'there is no backend {backend!r}; use "auto" or "torch"')


def _normalisers(sums: reference.Sums) -> tuple[Tensor, Tensor]:
    """N_pos and N_neg: means over ranks, then at least 1 (spec, section Normalisers)."""
    counts = torch.stack((sums.num_boxes, sums.neg_count))
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(counts)
        counts = counts / distributed.get_world_size()
    pos_norm, neg_norm = counts.clamp(min=1)
    return pos_norm, neg_norm


def _check_levels(
    strides: tuple[int, ...],
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor],
) -> None:
    """Raise ValueError unless the three inputs have one floating tensor a level, of shapes that fit, on one device."""
    named = {"cls_logits": cls_logits, "box_distances": box_distances, "objectness": objectness}
    for name, levels in named.items():
        if not isinstance(levels, list | tuple) or not all(isinstance(level, Tensor) for level in levels):
            raise ValueError(f"{name} must be a list of tensors, one for each level")
        if len(levels) != len(strides):
            raise ValueError(f"{name} has {len(levels)} levels, but the strides are {strides}: one level for each")
    if cls_logits[0].ndim != 4 or 0 in cls_logits[0].shape:
        raise ValueError(f"cls_logits[0] must be (B, C, H, W) and not empty, not {tuple(cls_logits[0].shape)}")
    batch, num_classes = cls_logits[0].shape[:2]
    device = cls_logits[0].device
    for i, logits in enumerate(cls_logits):
        size = tuple(logits.shape[2:])
        for (name, levels), channels in zip(named.items(), (num_classes, 4, 1)):
            level = levels[i]
            if level.shape != (batch, channels, *size) or len(size) != 2 or 0 in size:
                expected = f"({batch}, {channels}, H, W)" if name == "cls_logits" else (batch, channels, *size)
                raise ValueError(f"{name}[{i}] must be {expected} and not empty, not {tuple(level.shape)}")
            if not level.is_floating_point():
                raise ValueError(f"{name}[{i}] must be a floating tensor, not {level.dtype}")
            if level.device != device:
                raise ValueError(f"{name}[{i}] lies on {level.device}, cls_logits[0] on {device}")
