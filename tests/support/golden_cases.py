"""The golden files as cases, and what has to be equal to them."""

from pathlib import Path

import numpy as np
import torch

from tests.support.loss_cases import LOSSES, Case, assert_gradients, run_loss

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASED = ["r50_1x", "r50_refine_1x", "r50_refine_ms_2x", "r50_dcn_refine_ms_2x", "r101_ms_2x"]  # configs
GOLDEN_NAMES = sorted(path.stem for path in GOLDEN.glob("loss_*.npz"))
GRADIENTS = ("grad_cls_logits", "grad_box_dist", "grad_obj_logits")


def golden_case(name: str) -> tuple[Case, dict[str, np.ndarray]]:
    """A golden file as a case, and its arrays."""
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    counts = arrays["num_gt"].tolist()
    case = Case(
        strides=tuple(arrays["strides"].tolist()),
        sizes=[tuple(size) for size in arrays["level_sizes"].tolist()],
        z=arrays["cls_logits"],
        u=arrays["obj_logits"],
        d=arrays["box_dist"],
        boxes=[boxes[:count] for boxes, count in zip(arrays["gt_boxes"], counts)],
        labels=[labels[:count] for labels, count in zip(arrays["gt_labels"], counts)],
        soft_prior=bool(arrays["soft_prior"]),
    )
    return case, arrays


def golden_neg(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The golden negative weights, dense [B, P, C]."""
    neg = np.ones(arrays["cls_logits"].shape)
    neg[tuple(arrays["p_neg_weight_idx"].T)] = arrays["p_neg_weight_val"]
    return neg


def golden_losses(golden: dict[str, np.ndarray]) -> np.ndarray:
    return np.array([golden[key] for key in LOSSES])


def golden_gradients(golden: dict[str, np.ndarray]) -> list[np.ndarray]:
    """In the order and shapes of `run_loss`."""
    z, d, u = (golden[key] for key in GRADIENTS)
    return [z, d, u[..., None]]


def assert_float32_loss_equals_golden(case: Case, golden: dict[str, np.ndarray], memory_format) -> None:
    """By the numerics rules: 1e-5 of a loss, 1e-4 of a gradient's largest entry, or twice the released code's error."""
    truth = golden_losses(golden)
    losses, grads = run_loss(case, case.tensors(torch.float32, memory_format))
    released_error = np.abs(np.array([golden[f"{key}_f32"] for key in LOSSES]) - truth)
    assert (np.abs(losses - truth) <= np.maximum(1e-5 * np.abs(truth), 2 * released_error)).all()
    released_error = golden["grad_f32_maxabs_diff"] / np.maximum(golden["grad_maxabs"], 1e-300)
    assert_gradients(grads, golden_gradients(golden), tuple(np.maximum(1e-4, 2 * released_error)))


def assert_assigner_equals_golden(case: Case, golden: dict[str, np.ndarray], dtype: torch.dtype, limit: float) -> None:
    neg = golden_neg(golden)
    weights = case.weights(dtype)
    assert len(weights) == len(case.boxes)
    for image, weight in enumerate(weights):
        count = len(case.labels[image])
        np.testing.assert_array_equal(weight.points.numpy(), golden["points"])
        np.testing.assert_array_equal(weight.inside.numpy(), golden["inside_mask"][image][:, :count])
        for key, got in (("center_prior", weight.prior), ("ious", weight.iou), ("p_pos_weight", weight.pos)):
            np.testing.assert_allclose(got.double().numpy(), golden[key][image][:, :count], atol=limit, err_msg=key)
        np.testing.assert_allclose(weight.neg.double().numpy(), neg[image], atol=limit)
        score = 1 / (1 + np.exp(-golden["cls_logits"][image].astype(float)))
        score = score / (1 + np.exp(-golden["obj_logits"][image].astype(float)))[:, None]
        np.testing.assert_allclose(weight.score.double().numpy(), score, atol=limit)


def detection_inputs(data) -> tuple[list[torch.Tensor], ...]:
    """The head outputs of a detect file as one [B, channels, H, W] map for each level."""
    sizes = [tuple(size) for size in data["level_sizes"].tolist()]
    maps = []
    for key in ("cls_logits", "box_dist", "obj_logits"):
        flat = torch.from_numpy(data[key]).reshape(len(data[key]), len(data["points"]), -1)  # [B, P, channels]
        levels = flat.split([height * width for height, width in sizes], 1)
        maps.append([level.transpose(1, 2).unflatten(2, size) for level, size in zip(levels, sizes)])
    return tuple(maps)
