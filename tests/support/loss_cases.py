"""Inputs of the loss, as the oracle and as PyTorch take them, and a way to run both."""

from dataclasses import dataclass, field, replace
from importlib import import_module

import numpy as np
import torch

from dwtriton.core.head_outputs import HeadOutputs
from dwtriton.core.targets import pack_targets
from dwtriton.losses.dual_weight import DualWeightAssigner, DualWeightLoss
from dwtriton.reference.dense_weights import DualWeights
from tests import oracle

UNDERFLOW = 1e-37  # about the least normal float32
LOSSES = ("loss_cls_pos", "loss_loc", "loss_cls_neg")


@dataclass
class Case:
    """A batch, as NumPy arrays over the points of all levels."""

    strides: tuple[int, ...]
    sizes: list[tuple[int, int]]
    z: np.ndarray = field(repr=False)  # [B, P, C]
    u: np.ndarray = field(repr=False)  # [B, P]
    d: np.ndarray = field(repr=False)  # [B, P, 4]
    boxes: list[np.ndarray]  # [G, 4] each
    labels: list[np.ndarray]  # [G] each
    soft_prior: bool = True
    iscrowd: list[np.ndarray] | None = None
    box_weights: list[np.ndarray] | None = None
    backend: str = "torch"  # what PyTorch runs it with, and where
    device: str = "cpu"

    @property
    def weight_underflow(self) -> float:
        """Absolute error that float32 makes where its numbers end, in weights, positive losses and gradients.

        A GPU has none below 1e-38. Over a 1 - s of e^-40 that leaves 3e-21 of a gradient, and up to a hundred classes
        add up; over a denominator of 1e-12 less. The interpreter keeps numbers to 1e-45, without their digits: over
        1e-12, with a hundred boxes and a -ln s of a hundred, 1e-29.
        """
        if self.backend == "torch":
            return UNDERFLOW
        return 1e-18 if self.device == "cuda" else 1e-28

    def rounded(self, dtype: torch.dtype) -> "Case":
        """The same case with values that `dtype` holds."""

        def through(array):
            return torch.tensor(array).to(dtype).double().numpy()

        return replace(self, z=through(self.z), u=through(self.u), d=through(self.d))

    def points(self) -> tuple[np.ndarray, np.ndarray]:
        points, strides = [], []
        for (height, width), stride in zip(self.sizes, self.strides):
            rows, columns = np.mgrid[:height, :width]
            points.append(np.stack((columns.ravel() + 0.5, rows.ravel() + 0.5), 1) * stride)
            strides.append(np.full(height * width, float(stride)))
        return np.concatenate(points), np.concatenate(strides)

    def images(self) -> list[oracle.Image]:
        points, strides = self.points()
        parts = zip(self.z, self.u, self.d, self.boxes, self.labels)
        box_weights = self.box_weights or [None] * len(self.boxes)
        return [
            oracle.Image(points, strides, *(np.asarray(a, np.float64) for a in (z, u, d, boxes)), labels, weights)
            for (z, u, d, boxes, labels), weights in zip(parts, box_weights)
        ]

    def oracle_weights(self) -> list[oracle.Weights]:
        crowds = self.iscrowd or [None] * len(self.boxes)
        return [oracle.weights(image, self.soft_prior, crowd) for image, crowd in zip(self.images(), crowds)]

    def truth(self, weights=None, **options) -> oracle.Result:
        weights = self.oracle_weights() if weights is None else weights
        return oracle.losses_and_gradients(self.images(), weights, iscrowd=self.iscrowd, **options)

    def tensors(self, dtype=torch.float32, memory_format=torch.contiguous_format) -> list[list[torch.Tensor]]:
        """Leaf tensors: class logits, distances and objectness, each over levels."""
        return [
            [
                level.to(self.device).contiguous(memory_format=memory_format).requires_grad_()
                for level in self.split(array, dtype)
            ]
            for array in (self.z, self.d, self.u[..., None])
        ]

    def split(self, array: np.ndarray, dtype: torch.dtype) -> list[torch.Tensor]:
        """[B, P, K] as one [B, K, H, W] tensor a level."""
        counts = [height * width for height, width in self.sizes]
        flat = torch.tensor(array).to(dtype).transpose(1, 2)
        return [part.reshape(*part.shape[:2], *size) for part, size in zip(flat.split(counts, 2), self.sizes)]

    def targets(self, dtype=torch.float32) -> list[dict[str, torch.Tensor]]:
        targets = [
            {"boxes": torch.tensor(boxes).to(dtype), "labels": torch.tensor(labels)}
            for boxes, labels in zip(self.boxes, self.labels)
        ]
        for target, crowd in zip(targets, self.iscrowd or []):
            target["iscrowd"] = torch.tensor(crowd)
        for target, weights in zip(targets, self.box_weights or []):
            target["weights"] = torch.tensor(weights).float()
        return targets

    def loss(self, inputs, targets=None) -> dict[str, torch.Tensor]:
        module = DualWeightLoss(self.strides, self.soft_prior, self.backend)
        return module(*inputs, self.targets() if targets is None else targets)

    def weights(self, dtype=torch.float32) -> list[DualWeights]:
        """On the CPU."""
        assigner = DualWeightAssigner(self.strides, self.soft_prior, self.backend)
        weights = assigner(*self.tensors(dtype), self.targets())
        return [DualWeights(*(part.cpu() for part in image)) for image in weights]

    def sums(self, inputs, packed=None) -> tuple[torch.Tensor, torch.Tensor]:
        """Losses before their normalisers [3] and the counts these come from [3], of targets that are not checked."""
        module = import_module("dwtriton.reference" if self.backend == "torch" else "dwtriton.kernels")
        packed = pack_targets(self.targets(), self.device) if packed is None else packed
        return module.dual_weight_sums(HeadOutputs(*inputs), packed, self.strides, self.soft_prior)


def random_case(
    seed: int,
    boxes: list[int],
    classes: int = 3,
    sizes=((12, 16), (6, 8), (3, 4), (2, 2), (1, 1)),
    strides=(8, 16, 32, 64, 128),
    logit_scale: float = 2.0,
    closeness: float = 0.7,
    soft_prior: bool = True,
) -> Case:
    """A case with `boxes[b]` boxes in image b, on quarter pixels so that edges meet points exactly.

    `closeness` is the share of points whose predicted sides are near those of a box of their image.
    """
    random = np.random.default_rng(seed)
    case = Case(tuple(strides), list(sizes), None, None, None, [], [], soft_prior)
    points, point_strides = case.points()
    width, height = sizes[0][1] * strides[0], sizes[0][0] * strides[0]
    distances = []
    for count in boxes:
        corner = random.uniform([-0.1 * width, -0.1 * height], [width, height], (count, 2))
        side = np.exp(random.uniform(np.log(3), np.log(max(width, height)), (count, 2)))
        box = np.round(np.concatenate((corner, corner + side), 1) * 4) / 4
        label = random.integers(0, classes, count)
        d = np.exp(random.normal(0, 1, (len(points), 4))) * 2 * point_strides[:, None]
        if count:
            nearest = oracle.box_sides(points, box)[np.arange(len(points)), random.integers(0, count, len(points))]
            near = nearest * np.exp(random.normal(0, 0.15, nearest.shape))
            use = (random.random(len(points)) < closeness)[:, None] & (nearest.min(1, keepdims=True) > 0)
            d = np.where(use, near, d)
        case.boxes.append(box)
        case.labels.append(label)
        distances.append(d)
    case.z = random.normal(-1, logit_scale, (len(boxes), len(points), classes))
    case.u = random.normal(0, logit_scale, (len(boxes), len(points)))
    case.d = np.array(distances)
    return case.rounded(torch.float32)


def run_loss(case: Case, inputs, targets=None, factors=(1, 1, 1)):
    """Losses [3] and gradients of their weighted sum as [B, P, K] arrays (class logits, distances, objectness)."""
    losses = case.loss(inputs, targets)
    flat = [level for kind in inputs for level in kind]
    total = sum(factor * losses[name] for factor, name in zip(factors, LOSSES))
    grads = iter(torch.autograd.grad(total, flat))
    joined = [join([next(grads) for _ in kind]) for kind in inputs]
    return np.array([losses[name].item() for name in LOSSES]), joined


def sums_and_gradients(case: Case, packed=None):
    """Losses before their normalisers and the counts of these [6], and gradients of the sum of the losses as arrays."""
    inputs = case.tensors()
    sums, counts = case.sums(inputs, packed)
    grads = iter(torch.autograd.grad(sums.sum(), [level for kind in inputs for level in kind]))
    return torch.cat((sums, counts)).detach().cpu().numpy(), [join([next(grads) for _ in kind]) for kind in inputs]


def join(levels: list[torch.Tensor]) -> np.ndarray:
    """[B, K, H, W] levels as [B, P, K] float64."""
    return torch.cat([level.detach().cpu().flatten(2).transpose(1, 2) for level in levels], 1).double().numpy()


def truth_gradients(result: oracle.Result) -> list[np.ndarray]:
    """In the order and shapes of `run_loss`."""
    return [np.array(result.grad_z), np.array(result.grad_d), np.array(result.grad_u)[..., None]]


def assert_gradients(got, expected, tolerance, rounding: float = 0.0, underflow: float = UNDERFLOW) -> None:
    """Element by element: within `tolerance` of the tensor's largest entry, plus `rounding` relative to the element."""
    tolerances = tolerance if isinstance(tolerance, tuple) else (tolerance,) * 3
    for name, one, other, limit in zip(("class logits", "distances", "objectness"), got, expected, tolerances):
        assert one.shape == other.shape
        allowed = limit * np.abs(other).max(initial=0) + rounding * np.abs(other) + underflow
        excess = np.abs(one - other) - allowed
        assert (excess <= 0).all(), f"gradient of {name}: {excess.max()} above the limit of {allowed.max()}"


def overlapping() -> Case:
    """Two boxes of one class over the same points, both predicted well in places."""
    case = random_case(5, [2], sizes=((8, 8), (4, 4)), strides=(8, 16))
    case.boxes[0][:] = [(2, 2, 50, 50), (6, 2, 54, 60)]
    case.labels[0][:] = 1
    points, _ = case.points()
    sides = np.concatenate((points - (3, 2), (51, 54) - points), 1).clip(1)
    case.d[0] = sides * np.random.default_rng(0).uniform(0.8, 1.2, sides.shape)
    return case.rounded(torch.float32)


def crowded() -> Case:
    """Ground truth and regions to ignore over each other."""
    case = random_case(7, [6, 3], classes=4)
    case.iscrowd = [np.array([0, 1, 0, 0, 1, 0], bool), np.array([0, 0, 0], bool)]
    case.boxes[0][1] = (20, 12, 84, 60)
    return case


def weighted() -> Case:
    """Boxes of several weights, 0 among them, over each other and over regions to ignore."""
    case = crowded()
    case.box_weights = [np.array([0.5, 1, 0, 2, 1, 0.25]), np.array([0.0, 3, 1])]
    case.boxes[0][5], case.labels[0][5] = case.boxes[0][2] + (4, -4, 8, 6), case.labels[0][2]
    case.boxes[1][0], case.labels[1][0] = case.boxes[1][1] + (-9, 2, 3, 3), case.labels[1][1]
    return case


def all_without_weight() -> Case:
    case = overlapping()
    case.box_weights = [np.zeros(2)]
    return case


def last_without_weight() -> Case:
    """Of two boxes of one class over each other, the one that decides."""
    case = overlapping()
    case.box_weights = [np.array([1.0, 0.0])]
    return case


def strided(level: torch.Tensor) -> torch.Tensor:
    """The same values with gaps in memory."""
    wide = torch.zeros(*level.shape[:3], 2 * level.shape[3] + 1, dtype=level.dtype, device=level.device)
    wide[..., 1::2] = level
    return wide[..., 1::2]


LAYOUTS = {
    "contiguous": torch.Tensor.contiguous,
    "channels last": lambda level: level.contiguous(memory_format=torch.channels_last),
    "strided": strided,
    "transposed": lambda level: level.transpose(2, 3).contiguous().transpose(2, 3),
    "slice of channels": lambda level: torch.cat((level, level + 1), 1)[:, : level.shape[1]],
    "offset": lambda level: torch.cat((level + 1, level))[len(level) :],
}


def check_without_objectness(case: Case, tolerance: float, dtype: torch.dtype) -> None:
    """`objectness=None` against the oracle with an objectness of one; some logits are far from zero."""
    case.z[:, ::7] = np.sign(case.z[:, ::7]) * 60
    truth = replace(case, u=np.full_like(case.u, 1000.0)).truth()
    z, d, _ = case.tensors(dtype)
    losses = DualWeightLoss(case.strides, case.soft_prior, case.backend)(z, d, None, case.targets())
    values = np.array([losses[name].item() for name in LOSSES])
    np.testing.assert_allclose(values, truth.losses, rtol=tolerance / 10)
    sum(losses.values()).backward()
    grads = [join([level.grad for level in kind]) for kind in (z, d)]
    assert_gradients(grads, truth_gradients(truth)[:2], tolerance)


class Unused(torch.autograd.Function):
    """Hands its input on and no gradient back."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, grad):
        return None
