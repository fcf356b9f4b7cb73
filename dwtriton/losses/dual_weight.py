"""The Dual Weighting loss and label assigner as modules: choice of backend, normalisers across ranks."""

from collections.abc import Sequence
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn

from dwtriton import reference
from dwtriton.core import ranks
from dwtriton.core.errors import UserError
from dwtriton.core.head_outputs import HeadOutputs, Levels, check_strides
from dwtriton.core.points import STRIDES
from dwtriton.core.targets import PackedTargets
from dwtriton.losses.inputs import Targets, check_inputs
from dwtriton.reference import ablations, formulas
from dwtriton.reference.dense_weights import DualWeights

ON_A_CPU = 'use backend="torch", or for a slow run of the kernels set TRITON_INTERPRET=1 before Python starts'
LOSS_NAMES = ("loss_cls_pos", "loss_loc", "loss_cls_neg")
SATURATED_LOGIT = 1000.0  # its sigmoid is 1, while everything that is computed from it stays finite


class _DualWeighting(nn.Module):
    """Settings, input checks and choice of backend, shared by the loss and the assigner."""

    def __init__(self, strides: Sequence[int] = STRIDES, soft_prior: bool = True, backend: str = "auto") -> None:
        super().__init__()
        self.strides = check_strides(strides)
        if not isinstance(soft_prior, bool):
            raise ValueError(f"soft_prior is true or false, not {soft_prior!r}")
        self.soft_prior, self.backend = soft_prior, backend
        self._may_use_kernels = _has_kernels(backend)

    def extra_repr(self) -> str:
        return f"strides={self.strides}, soft_prior={self.soft_prior}, backend={self.backend!r}"

    def _prepare(
        self, cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
    ) -> tuple[HeadOutputs, PackedTargets]:
        """Check the arguments of `forward`; return them with objectness filled in and targets on the logits' device."""
        packed = check_inputs(self.strides, cls_logits, box_distances, objectness, targets)
        objectness = constant_objectness(cls_logits) if objectness is None else objectness
        return HeadOutputs(cls_logits, box_distances, objectness), packed

    def _backend_for(self, outputs: HeadOutputs) -> ModuleType:
        """Return `dwtriton.kernels` or `dwtriton.reference`. Raises UserError if the kernels cannot run here."""
        on_cpu = outputs.cls_logits[0].device.type == "cpu"
        unfit = on_cpu or outputs.arithmetic == torch.float64
        if not self._may_use_kernels or (self.backend == "auto" and unfit):
            return reference
        from dwtriton import kernels  # they need Triton

        if on_cpu and not kernels.INTERPRETED:
            raise UserError(f'backend="triton" needs tensors on a GPU, these are on the CPU; {ON_A_CPU}')
        return kernels


class DualWeightLoss(_DualWeighting):
    """Losses of Dual Weighting (CVPR 2022) from the outputs of a dense detection head (docs/method.md).

    `strides`: of the pyramid levels in pixels, finest first. `soft_prior`: False thresholds the centre prior at 0.3.
    `backend`: "triton" runs the GPU kernels, "torch" plain PyTorch, "auto" the kernels for tensors on a GPU that are
    not float64. Raises ValueError for settings out of range and for a backend that is not installed.
    """

    def forward(
        self, cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
    ) -> dict[str, Tensor]:
        """Return the losses of a batch: 0-d `loss_cls_pos`, `loss_loc` and `loss_cls_neg`; train on their sum.

        For each level l: `cls_logits[l]` (B, C, H, W); `box_distances[l]` (B, 4, H, W), left, top, right, bottom >= 0
        from the point to the predicted sides, in pixels; `objectness[l]` (B, 1, H, W) logits. Any floating dtype and
        memory format; arithmetic is float32 (float64 if an input is float64), also under autocast. `objectness=None`
        is for heads without that branch: the score is then sigmoid(cls_logits) alone. Distances are not checked, which
        would wait for the device: at a point inside a box, NaN or infinity makes the positive losses NaN, and what is
        negative gives losses and gradients without a meaning; at other points distances do not count.
        `targets`: a list with one dict for each image as for `pack_targets`, or the result of `pack_targets`. On CPU
        tensors their values are checked; on other devices an invalid label or box makes all losses NaN.
        The normalisers are means over all ranks if torch.distributed is initialised: call the loss on every rank.
        Raises ValueError, naming level or image, for whatever does not fit.
        """
        outputs, packed = self._prepare(cls_logits, box_distances, objectness, targets)
        with torch.autocast(outputs.cls_logits[0].device.type, enabled=False):
            backend = self._backend_for(outputs)
            normalisers = _mean_normalisers if ranks.is_distributed() else None
            losses = backend.dual_weight_losses(outputs, packed, self.strides, self.soft_prior, normalisers)
            return dict(zip(LOSS_NAMES, losses))


class DualWeightAssigner(_DualWeighting):
    """The weights behind the loss, dense, for people to look at and for other losses; not used in training.

    Settings are those of `DualWeightLoss`.
    """

    @torch.no_grad()
    def forward(
        self, cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
    ) -> list[DualWeights]:
        """Return the weights of each image; inputs and errors are those of `DualWeightLoss`."""
        outputs, packed = self._prepare(cls_logits, box_distances, objectness, targets)
        with torch.autocast(outputs.cls_logits[0].device.type, enabled=False):
            return self._backend_for(outputs).dual_weights(outputs, packed, self.strides, self.soft_prior)


class DualWeightAblationLoss(_DualWeighting):
    """Dual Weighting with parts of it changed, to measure what they are worth: docs/assigners.md#ablations.

    `negative_weight`: "iou" is the method's, m s^2; "score" leaves the IoU out, s^2; "complement" is 1 - w_pos inside
    boxes, where w_pos is summed over the boxes of a class, and not below 0. `beta`, `mu` and `mu_sum` are the exponents
    of the positive weight, `gamma_iou` and `gamma_score` those of the negative one. Normalisers are the method's: N_neg
    is the sum of 1 - m whatever the negative weight is. With the defaults it is `DualWeightLoss`, in plain PyTorch.
    """

    def __init__(
        self,
        strides: Sequence[int] = STRIDES,
        negative_weight: str = "iou",
        soft_prior: bool = True,
        beta: float = formulas.BETA,
        mu: float = formulas.MU,
        mu_sum: float = formulas.MU_SUM,
        gamma_iou: float = 2.0,
        gamma_score: float = 2.0,
    ) -> None:
        super().__init__(strides, soft_prior, backend="torch")
        if negative_weight not in ablations.NEGATIVE_WEIGHTS:
            raise ValueError(f"negative_weight is one of {ablations.NEGATIVE_WEIGHTS}, not {negative_weight!r}")
        exponents = {"beta": beta, "mu": mu, "mu_sum": mu_sum, "gamma_iou": gamma_iou, "gamma_score": gamma_score}
        for name, exponent in exponents.items():
            if not exponent > 0:
                raise ValueError(f"{name} is an exponent and must be positive, not {exponent}")
        self.ablation = ablations.Ablation(negative_weight, soft_prior, *map(float, exponents.values()))

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.ablation._asdict().items())
        return f"strides={self.strides}, {settings}"

    def forward(
        self, cls_logits: Levels, box_distances: Levels, objectness: Levels | None, targets: Targets
    ) -> dict[str, Tensor]:
        """Return the losses of a batch; arguments, names and errors are those of `DualWeightLoss`."""
        outputs, packed = self._prepare(cls_logits, box_distances, objectness, targets)
        with torch.autocast(outputs.cls_logits[0].device.type, enabled=False):
            sums, counts = ablations.ablation_sums(outputs, packed, self.strides, self.ablation)
            return dict(zip(LOSS_NAMES, sums / _mean_normalisers(counts)))


def _has_kernels(backend: str) -> bool:
    """Return whether `backend` is "triton", or "auto" on a machine that has a GPU and Triton. Raises UserError."""
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


def _mean_normalisers(counts: Tensor) -> Tensor:
    """Return the normalisers [3] from those of this rank before the clamp [3] (docs/method.md#normalisers)."""
    return ranks.all_reduce_mean(counts).clamp(min=1)


def constant_objectness(cls_logits: Levels) -> list[Tensor]:
    """Return objectness logits whose sigmoid is 1, for a head without that branch."""
    return [level.new_full((len(level), 1, *level.shape[2:]), SATURATED_LOGIT) for level in cls_logits]
