"""Parity with the released code: head, whole network and post-processing, element by element."""

import numpy as np
import pytest
import torch

from dwtriton import build_detector, load_config, postprocess
from dwtriton.config.schema import HeadConfig
from dwtriton.model.head import DenseHead
from dwtriton.model.mmdet_names import mmdet_name
from tests.support.golden_cases import detection_inputs

OUTPUTS = ("cls_score", "bbox_pred", "centerness")  # names of the golden files, in the order of our outputs


def assert_close(actual: torch.Tensor, truth: np.ndarray, bound: float) -> None:
    """No element is further than `bound` times the largest entry from the truth."""
    assert actual.shape == truth.shape
    error = np.abs(actual.double().numpy() - truth).max()
    assert error <= bound * max(np.abs(truth).max(), 1e-12)


def golden_head(data) -> DenseHead:
    head = DenseHead(
        HeadConfig(
            num_classes=int(data["num_classes"]),
            channels=int(data["channels"]),
            convs=int(data["stacked_convs"]),
            groups=int(data["num_groups"]),
            refine=bool(data["reg_refine"]),
            deformable=bool(data["dcn_on_last_conv"]),
        )
    )
    weights = {
        name: data[mmdet_name(f"head.{name}").replace("bbox_head.", "w.")].astype(np.float32)
        for name in head.state_dict()
    }
    head.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return head


@pytest.mark.parametrize("name", ["head_00_refine", "head_01_norefine", "head_02_refine_dcn"])
def test_head_equals_released_head(golden, name):
    data = golden(name)
    head = golden_head(data)
    features = [torch.from_numpy(data[f"feat{level}"]) for level in range(5)]
    with torch.no_grad():
        single = head(features)
        double = head.double()([feature.double() for feature in features])
        head.offset_conv = None
        coarse = head([feature.double() for feature in features])[1]
    for level in range(5):
        assert_close(coarse[level], data[f"bbox_pred_coarse{level}"], 1e-12)
        for kind, ours32, ours64 in zip(OUTPUTS, single, double):
            truth = data[f"{kind}{level}"]
            released = np.abs(data[f"{kind}{level}_f32"] - truth).max() / np.abs(truth).max()
            assert_close(ours64[level], truth, 1e-12)
            assert_close(ours32[level], truth, max(2 * released, 1e-5))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("r50_1x", "model_r50_1x"),
        ("r50_refine_1x", "model_r50_refine_1x"),
        ("r50_dcn_refine_ms_2x", "model_r50_dcn"),
    ],
)
def test_network_equals_released_network(golden, generated_weights, name, file):
    data = golden(file)
    seed = int(data["seed"])
    detector = build_detector(load_config(name)).eval()
    detector.load_mmdet_state_dict(generated_weights(name, seed))
    images = np.random.RandomState(seed).standard_normal(tuple(data["image_shape"]))
    images = torch.from_numpy(images.astype(np.float32))
    released = dict(zip(data["f32_diff_names"], data["f32_max_abs_diff"] / data["max_abs"]))

    single = named_outputs(detector, images)
    double = named_outputs(detector.double(), images.double())
    assert set(double) == set(released)
    for key in released:
        truth = data[key]
        storage = np.finfo(truth.dtype).eps  # c*, p* and cls_score* are stored in float32
        assert_close(double[key], truth, max(1e-12, storage))
        assert_close(single[key], truth, max(2 * released[key], 1e-5))


@torch.no_grad()
def named_outputs(detector, images) -> dict[str, torch.Tensor]:
    features = detector.backbone(images)
    named = {key: value[:, ::8] for key, value in features.items()}
    pyramid = detector.fpn(features)
    named |= {f"p{3 + level}": value[:, ::4] for level, value in enumerate(pyramid.values())}
    for kind, levels in zip(OUTPUTS, detector.head_outputs(images)):
        named |= {f"{kind}{level}": value for level, value in enumerate(levels)}
    return named


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("name", ["detect_00_normal", "detect_01_dense"])
def test_postprocess_equals_released_postprocess(golden, name, rescale):
    data = golden(name)
    maps = detection_inputs(data)
    settings = {
        "image_sizes": data["img_shape"].tolist(),
        "scale_factors": data["scale_factor"][:, :2].tolist() if rescale else None,
        "score_threshold": float(data["score_thr"]),
        "candidates_per_level": int(data["nms_pre"]),
    }
    results = postprocess(*maps, **settings, nms_iou=float(data["nms_iou"]), max_detections=int(data["max_per_img"]))
    candidates = postprocess(*maps, **settings, nms_iou=1.0, max_detections=10**6)
    assert len(results) == data["batch"]
    epsilon = np.finfo(np.float32).eps
    for image, result in enumerate(results):
        kind = "rescaled" if rescale else "input"
        truth = data[f"dets_{kind}_{image}"]
        np.testing.assert_array_equal(result["labels"].numpy(), data[f"labels_{kind}_{image}"])
        np.testing.assert_allclose(result["scores"].numpy(), truth[:, 4], rtol=4 * epsilon, atol=0)
        np.testing.assert_allclose(result["boxes"].numpy(), truth[:, :4], rtol=2 * epsilon, atol=2 * epsilon)
        assert len(candidates[image]["scores"]) == data[f"num_candidates_{image}"]
