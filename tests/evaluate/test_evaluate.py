"""`python -m dwtriton.evaluate` on a converted checkpoint follows the released test path, from files to detections."""

import json
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dwtriton import build_detector, load_config, postprocess
from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.config.schema import DataConfig
from dwtriton.data.batch import Batch
from dwtriton.data.images import resize
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.inference.detect import detect
from dwtriton.model.pixels import PixelDetector
from dwtriton.weights import __main__ as weights_command
from tests.support.golden_cases import GOLDEN, RELEASED, detection_inputs

CATEGORIES = {33: "kite", 90: "zebra", 7: "train"}  # labels go by id: train, kite, zebra
SIZES = {  # (h, w) by id; the long side's limit holds for the third, the first and the last share a batch
    11: (60, 90),
    5: (75, 50),
    20: (40, 120),
    8: (96, 96),
    21: (58, 90),
}
SEED = 4  # no two scores, and no overlap and its limit, are so close that float32 rounding could change the result
SMALL = [
    "backbone.depth=18",
    "head.num_classes=3",
    "head.channels=16",
    "head.convs=1",
    "head.groups=4",
    "head.refine=true",
    "inference.short_side=96",
    "inference.long_side=144",
    "data.workers=0",
]


@pytest.fixture
def coco(tmp_path):
    """A data set in COCO layout: noise as PNG, so that every decoder sees the same pixels."""
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    images, boxes = [], []
    for image_id, (height, width) in SIZES.items():
        blocks = np.random.default_rng(image_id).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
        pixels = blocks.repeat(8, 0).repeat(8, 1)[:height, :width]
        Image.fromarray(pixels).save(root / "val2017" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": width, "height": height})
        boxes.append({"id": image_id, "image_id": image_id, "category_id": 7, "bbox": [4, 4, 30, 30], "area": 900})
    categories = [{"id": id_, "name": name} for id_, name in CATEGORIES.items()]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return root


def generated(state, seed):
    """Weights under which the scores differ from point to point; statistics that are not those of a fresh network."""
    values = {}
    for name, tensor in state.items():
        random = np.random.RandomState(zlib.crc32(f"{seed}:{name}".encode()))
        shape = tuple(tensor.shape)
        if "center_prior" in name or not tensor.is_floating_point():
            continue
        if tensor.ndim == 4:
            value = (
                random.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:])) * (0.3 if "bbox_head" in name else 1)
            )
        elif name.endswith(("running_var", "scale")) or (name.endswith("weight") and tensor.ndim == 1):
            value = 0.7 + 0.3 * random.random_sample(shape)
        else:
            value = 0.1 * random.standard_normal(shape) + 2 * (name == "bbox_head.conv_reg.bias")
        values[name] = torch.tensor(value, dtype=tensor.dtype)
    return state | values


def expected_detections(state, cfg, root):
    """The released test path one image at a time in float64, from the files to COCO results."""
    detector = build_detector(cfg).double().eval()
    detector.load_mmdet_state_dict(state)
    category_ids = sorted(CATEGORIES)
    results = {}
    for image_id, (height, width) in SIZES.items():
        pixels = torch.from_numpy(np.array(Image.open(root / "val2017" / f"{image_id}.png"))).permute(2, 0, 1)
        scale = min(144 / max(height, width), 96 / min(height, width))
        new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
        resized = resize(pixels, torch.zeros(0, 4), 96, 144)[0].numpy().astype(np.float64)  # [3, h', w']
        assert resized.shape == (3, new_height, new_width)
        mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
        padded = np.zeros((1, 3, -(-new_height // 32) * 32, -(-new_width // 32) * 32))
        padded[0, :, :new_height, :new_width] = (resized - mean[:, None, None]) / std[:, None, None]
        with torch.no_grad():
            outputs = detector.head_outputs(torch.from_numpy(padded))
        scale_factors = [(new_width / width, new_height / height)]
        (found,) = postprocess(*outputs, [(new_height, new_width)], scale_factors, max_detections=101)
        xywh = torch.cat([found["boxes"][:, :2], found["boxes"][:, 2:] - found["boxes"][:, :2]], 1).numpy()
        ids = np.array(category_ids)[found["labels"].numpy()]
        results[image_id] = found["scores"].numpy(), xywh, ids
    return results


@pytest.mark.parametrize("ema", [False, True], ids=["as trained", "EMA"])
def test_a_converted_checkpoint_detects_what_the_released_test_path_does(ema, coco, tmp_path, call):
    cfg = load_config("r50_1x", SMALL)
    state = generated(build_detector(cfg).mmdet_state_dict(), SEED)
    torch.save({"meta": {"CLASSES": ("train", "kite", "zebra"), "iter": 90}, "state_dict": state}, tmp_path / "m.pth")
    setting = ["--cfg", "r50_1x", *(part for key in SMALL for part in ("--set", key))]
    assert call(weights_command, "from-mmdet", tmp_path / "m.pth", *setting, "--out", tmp_path / "ours.pt")[0] == 0
    if ema:  # the weights move into the EMA, and the model itself gets others
        checkpoint, other = load_checkpoint(tmp_path / "ours.pt"), build_detector(cfg)
        other.load_mmdet_state_dict(generated(state, SEED + 1))
        save_checkpoint(tmp_path / "ours.pt", checkpoint._replace(model=other.state_dict(), ema=checkpoint.model))
    code, printed, error = call(
        evaluate_command, "--weights", tmp_path / "ours.pt", "--data", coco, "--out", tmp_path / "out"
    )
    assert code == 0, error
    assert f"ours.pt: {'EMA weights' if ema else 'weights'} after iteration 90" in printed
    assert "Average Precision" in printed

    results = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert {result["category_id"] for result in results} == set(CATEGORIES)
    for image_id, (scores, boxes, ids) in expected_detections(state, cfg, coco).items():
        of_image = [result for result in results if result["image_id"] == image_id]
        count = min(len(scores), 100)
        assert count > 20
        assert -np.diff(scores).max() > 5e-6  # ten times what float32 could change
        assert [result["category_id"] for result in of_image] == ids[:count].tolist()
        np.testing.assert_allclose([result["score"] for result in of_image], scores[:count], rtol=1e-5)
        np.testing.assert_allclose([result["bbox"] for result in of_image], boxes[:count], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("golden", ["detect_00_normal", "detect_01_dense"])
def test_the_test_settings_of_every_released_config_are_those_of_the_golden_files(golden, name):
    data = np.load(GOLDEN / f"{golden}.npz")
    assert load_config(name).inference.model_dump(exclude={"short_side", "long_side", "compile"}) == {
        "score_threshold": float(data["score_thr"]),
        "candidates_per_level": int(data["nms_pre"]),
        "nms_iou": float(data["nms_iou"]),
        "max_detections": int(data["max_per_img"]),
    }


@pytest.mark.parametrize("golden", ["detect_00_normal", "detect_01_dense"])
def test_detections_of_the_golden_head_outputs_are_the_golden_ones(golden, monkeypatch):
    """After the network: settings, scale, category ids and COCO's boxes."""
    data = np.load(GOLDEN / f"{golden}.npz")
    classes, batch = data["cls_logits"].shape[-1], int(data["batch"])
    detector = build_detector(load_config("r50_1x", [*SMALL, f"head.num_classes={classes}"]))
    monkeypatch.setattr(detector, "head_outputs", lambda images: detection_inputs(data))
    category_ids = [10 * label + 3 for label in range(classes)]
    loaded = Batch(
        images=torch.zeros(batch, 3, *(8 * data["level_sizes"][0]).tolist()),
        targets=[],
        image_ids=[100 + image for image in range(batch)],
        image_sizes=data["img_shape"].tolist(),
        scale_factors=data["scale_factor"][:, :2].tolist(),
        paths=[],
        broken=[],
    )
    predict = PixelDetector(detector, DataConfig()).predict
    results = detect(predict, [loaded], category_ids, lambda batch: None)
    for image in range(batch):
        of_image = [result for result in results if result["image_id"] == 100 + image]
        truth, labels = data[f"dets_rescaled_{image}"].astype(float), data[f"labels_rescaled_{image}"]
        assert [result["category_id"] for result in of_image] == (10 * labels + 3).tolist()
        np.testing.assert_allclose([result["score"] for result in of_image], truth[:, 4], rtol=5e-7)
        x1, y1, x2, y2, _ = truth.T
        xywh = np.stack([x1, y1, x2 - x1, y2 - y1], 1)
        np.testing.assert_allclose(
            [result["bbox"] for result in of_image], xywh, rtol=0, atol=5e-7 * truth[:, :4].max()
        )
