"""The Dual Weighting loss and label assigner as modules: input checks, choice of backend, normalisers across ranks."""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, distributed, nn

from dwtriton import reference
from dwtriton.dense_weights import DualWeights
from dwtriton.errors import UserError
from dwtriton.points import STRIDES
from dwtriton.targets import PackedTargets, check_packed, check_values, concatenate_targets

ON_A_CPU = 'use backend="torch", or for a slow run of the kernels set TRITON_INTERPRET=1 before Python starts'
CERTAIN = 1000.0  # objectness logit whose sigmoid is one, while all that is computed from it stays finite
Targets = Sequence[Mapping[str, Tensor]] | PackedTargets


class _DualWeighting(nn.Module):
    """What the loss and the assigner share: settings, input checks and the choice of backend."""

    def __init__(self, strides: Sequence[int] = STRIDES, soft_prior: bool = True, backend: str = "auto") -> None:
        super().__init__()
        self.strides = tuple(strides)
        if not self.strides or not all(stride > 0 for stride in self.strides):
            raise ValueError(f"strides must be positive pixels, one for each level, not {self.strides}")
        self.soft_prior = soft_prior
        self.backend = backend
        self._may_use_kernels = _has_kernels(backend)

    def extra_repr(self) -> str:
        return f"strides={self.strides}, soft_prior={self.soft_prior}, backend={self.backend!r}"

    def _backend_for(self, *inputs: Sequence[Tensor]) -> ModuleType:
        """The module that computes: the kernels or the reference. Raises UserError if the kernels cannot run here."""
        on_cpu = inputs[0][0].device.type == "cpu"
        double = any(level.dtype == torch.float64 for levels in inputs for level in levels)
        if not self._may_use_kernels or (self.backend == "auto" and (on_cpu or double)):
            return reference
        from dwtriton import kernels  # they need Triton

        if on_cpu and not kernels.INTERPRETED:
            raise UserError(f'backend="triton" needs tensors on a GPU, these are on the CPU; {ON_A_CPU}')
        return kernels

    def _check(
        self,
        cls_logits: Sequence[Tensor],
        box_distances: Sequence[Tensor],
        objectness: Sequence[Tensor] | None,
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
    `backend`: "triton" takes the GPU kernels, "torch" plain PyTorch, "auto" the kernels for tensors on a GPU that are
    not float64. Raises ValueError for settings out of range and for a backend that is not installed.
    """

    def forward(
        self,
        cls_logits: Sequence[Tensor],
        box_distances: Sequence[Tensor],
        objectness: Sequence[Tensor] | None,
        targets: Targets,
    ) -> dict[str, Tensor]:
        """Losses of a batch: 0-d `loss_cls_pos`, `loss_loc` and `loss_cls_neg`; a detector minimises their sum.

        For each level l: `cls_logits[l]` (B, C, H, W); `box_distances[l]` (B, 4, H, W), left, top, right, bottom >= 0
        from the point to the predicted sides, in pixels; `objectness[l]` (B, 1, H, W) logits. Any floating dtype and
        memory format; arithmetic is float32 (float64 where an input is), also under autocast. `objectness=None` is for
        heads without that branch: the score is then sigmoid(cls_logits) alone.
        `targets`: a list with one dict for each image as for `pack_targets`, or its result. On CPU tensors their values
        are checked; on other devices an invalid label or box makes all losses NaN.
        The normalisers are means over all ranks where torch.distributed is initialised: call it on every rank alike.
        Raises ValueError, naming level or image, for whatever does not fit.
        """
        packed = self._check(cls_logits, box_distances, objectness, targets)
        objectness = _certain(cls_logits) if objectness is None else objectness
        with torch.autocast(cls_logits[0].device.type, enabled=False):
            normalise = _normalisers if distributed.is_available() and distributed.is_initialized() else None
            losses = self._backend_for(cls_logits, box_distances, objectness).dual_weight_losses(
                cls_logits, box_distances, objectness, packed, self.strides, self.soft_prior, normalise
            )
            return dict(zip(("loss_cls_pos", "loss_loc", "loss_cls_neg"), losses))


class DualWeightAssigner(_DualWeighting):
    """The weights behind the loss, dense, for people to look at and for other losses; not used in training.

    Settings are those of `DualWeightLoss`.
    """

    @torch.no_grad()
    def forward(
        self,
        cls_logits: Sequence[Tensor],
        box_distances: Sequence[Tensor],
        objectness: Sequence[Tensor] | None,
        targets: Targets,
    ) -> list[DualWeights]:
        """The weights of each image; inputs and errors are those of `DualWeightLoss`."""
        packed = self._check(cls_logits, box_distances, objectness, targets)
        objectness = _certain(cls_logits) if objectness is None else objectness
        with torch.autocast(cls_logits[0].device.type, enabled=False):
            return self._backend_for(cls_logits, box_distances, objectness).dual_weights(
                cls_logits, box_distances, objectness, packed, self.strides, self.soft_prior
            )


def _has_kernels(backend: str) -> bool:
    """Whether `backend` asks for the kernels, or leaves the choice on a machine that has a GPU and Triton."""
    if backend not in ("auto", "triton", "torch"):
        raise UserError(f'there is no backend {backend!r}; use "auto", "triton" or "torch"')
    has_gpu, has_triton = torch.cuda.is_available(), find_spec("triton") is not None
    if backend == "torch" or (backend == "auto" and not (has_gpu and has_triton)):
        return False
    if not has_triton:
        raise UserError('backend="triton" needs Triton: pip install triton (on Linux), or use backend="torch"')
    from dwtriton import kernels

    if not (has_gpu or kernels.INTERPRETED):
        raise UserError(f'backend="triton" needs a GPU, and PyTorch finds none; {ON_A_CPU}')
    return True


def _normalisers(counts: Tensor) -> Tensor:
    """N_pos, N_pos and N_neg: means over ranks, then at least 1 (spec, section Normalisers)."""
    if distributed.is_available() and distributed.is_initialized():
        counts = counts.clone()
        distributed.all_reduce(counts)
        counts = counts / distributed.get_world_size()
    return counts.clamp(min=1)


def _certain(cls_logits: Sequence[Tensor]) -> list[Tensor]:
    """Objectness logits of a head that has none."""
    return [level.new_full((len(level), 1, *level.shape[2:]), CERTAIN) for level in cls_logits]


def _check_levels(
    strides: tuple[int, ...],
    cls_logits: Sequence[Tensor],
    box_distances: Sequence[Tensor],
    objectness: Sequence[Tensor] | None,
) -> None:
    """Raise ValueError unless the inputs have one floating tensor a level, of shapes that fit, on one device."""
    named = {"cls_logits": cls_logits, "box_distances": box_distances}
    if objectness is not None:
        named["objectness"] = objectness
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
