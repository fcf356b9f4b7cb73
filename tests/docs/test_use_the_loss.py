"""What docs/use-the-loss.md shows does what the page says; MMDetection's part against a stand-in for its head."""

import re
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou

from dwtriton import DualWeightLoss

PAGE = (Path(__file__).parents[2] / "docs" / "use-the-loss.md").read_text()
STRIDES = (8, 16, 32, 64, 128)


def example(language, number):
    """The code of a block of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)[number]


def run(code):
    namespace = {}
    exec(compile(code, "example", "exec"), namespace)
    return namespace


class Pooled(nn.Module):
    """A backbone of five levels, without much in it."""

    out_channels = 32

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, self.out_channels, 1)

    def forward(self, images):
        features = self.stem(images)
        pool = partial(nn.functional.avg_pool2d, ceil_mode=True)
        return {str(stride): pool(features, stride) for stride in STRIDES}


@pytest.fixture(scope="module")
def fcos_detector():
    """The detector that the page makes of torchvision's FCOS, with a small network inside."""
    classes = run(example("python", 0).split("\n\n\ntorch.manual_seed")[0])
    torch.manual_seed(0)
    return classes["DualWeightFCOS"](FCOS(Pooled(), num_classes=3, min_size=64, max_size=96))


@pytest.mark.parametrize(("level", "row", "column"), [(0, 7, 11), (0, 0, 0), (1, 3, 2), (2, 1, 2), (4, 0, 0)])
def test_boxes_of_fcos_are_decoded_at_the_centres_of_the_cells(fcos_detector, monkeypatch, level, row, column):
    """In pixels of the image as it was given: here twice as large as in the network."""
    sizes = [(8, 12), (4, 6), (2, 3), (1, 2), (1, 1)]
    width, stride = sizes[level][1], STRIDES[level]
    point = sum(h * w for h, w in sizes[:level]) + row * width + column
    flat = {
        "cls_logits": torch.full((1, 8 * 12 + 4 * 6 + 2 * 3 + 2 + 1, 3), -20.0),
        "bbox_regression": torch.zeros(1, 129, 4),
        "bbox_ctrness": torch.full((1, 129, 1), 20.0),
    }
    flat["cls_logits"][0, point, 1] = 2.0
    flat["bbox_regression"][0, point] = torch.tensor([0.25, 0.125, 0.5, 0.0625])
    monkeypatch.setattr(fcos_detector.fcos.head, "forward", lambda levels: flat)
    (found,) = fcos_detector.eval()([torch.zeros(3, 128, 192)])
    x, y = (column + 0.5) * stride, (row + 0.5) * stride
    box = torch.tensor([x - 0.25 * stride, y - 0.125 * stride, x + 0.5 * stride, y + 0.0625 * stride])
    limits = torch.tensor([96.0, 64, 96, 64])
    torch.testing.assert_close(found["boxes"], 2 * box.minimum(limits)[None])
    assert found["labels"].tolist() == [1]
    assert found["scores"].item() == pytest.approx(torch.tensor(2.0).sigmoid().item())


def test_every_branch_of_fcos_is_trained(fcos_detector):
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 56]]), "labels": torch.tensor([2])}]
    losses = fcos_detector.train()([torch.rand(3, 64, 96)] * 2, targets * 2)
    fcos_detector.zero_grad()
    sum(losses.values()).backward()
    head = fcos_detector.fcos.head
    branches = (head.classification_head.cls_logits, head.regression_head.bbox_reg, head.regression_head.bbox_ctrness)
    for branch in branches:
        assert branch.weight.grad.abs().max() > 0


def test_anchors_of_torchvision_stand_where_the_page_says():
    features = [torch.zeros(1, 1, -(-800 // stride), -(-1344 // stride)) for stride in STRIDES]
    generator = AnchorGenerator(tuple((stride,) for stride in STRIDES), ((1.0,),) * len(STRIDES))
    (anchors,) = generator(ImageList(torch.zeros(1, 3, 800, 1344), [(800, 1344)]), features)
    steps = []
    for level, feature in zip(anchors.split([feature.numel() for feature in features]), features):
        centres = (level[:, 1] + level[:, 3]).view(feature.shape[2:]) / 2
        assert centres[0, 0] == 0
        steps.append(int(centres[1, 0]))
    assert steps == [8, 16, 32, 61, 114]
    assert "steps of 61 and 114 pixels" in " ".join(PAGE.split())


def test_the_plain_head_finds_its_boxes():
    result = run(example("python", 1))
    found, (truth,) = result["found"], result["targets"]
    order = found["labels"].argsort()
    assert found["labels"][order].tolist() == [0, 1]
    assert box_iou(found["boxes"][order], truth["boxes"]).diagonal().min() > 0.7


class InstanceData:
    def __init__(self, **fields):
        self.__dict__.update(fields)


class FCOSHead(nn.Module):
    """Interface and outputs of MMDetection 3's head of that name, as far as the page relies on them."""

    def __init__(self, num_classes, in_channels, strides=STRIDES, norm_on_bbox=False, test_cfg=None):
        super().__init__()
        self.strides, self.norm_on_bbox, self.test_cfg = strides, norm_on_bbox, test_cfg
        self.conv_cls, self.conv_reg, self.conv_centerness = (
            nn.Conv2d(in_channels, channels, 3, padding=1) for channels in (num_classes, 4, 1)
        )

    def init_weights(self):
        nn.init.zeros_(self.conv_reg.bias)

    def forward(self, x):
        outputs = [self.forward_single(level, nn.Identity(), stride) for level, stride in zip(x, self.strides)]
        return tuple(map(list, zip(*outputs)))

    def forward_single(self, x, scale, stride):
        sides = scale(self.conv_reg(x)).float()
        sides = sides.clamp(min=0) if self.norm_on_bbox else sides.exp()
        if self.norm_on_bbox and not self.training:
            sides = sides * stride
        return self.conv_cls(x), sides, self.conv_centerness(x)

    def loss(self, x, batch_data_samples):
        truths, metas = (
            [getattr(sample, name) for sample in batch_data_samples] for name in ("gt_instances", "metainfo")
        )
        return self.loss_by_feat(*self(x), truths, metas, [None] * len(truths))

    def predict(self, x, batch_data_samples, rescale=False):
        metas = [sample.metainfo for sample in batch_data_samples]
        return self.predict_by_feat(*self(x), batch_img_metas=metas, rescale=rescale)


@pytest.fixture
def mmdet(monkeypatch):
    """The classes that the page registers, by name."""
    registered = {}

    def register_module():
        return lambda cls: registered.setdefault(cls.__name__, cls)

    modules = {
        "mmdet.models.dense_heads": {"FCOSHead": FCOSHead},
        "mmdet.registry": {"MODELS": SimpleNamespace(register_module=register_module)},
        "mmengine.structures": {"InstanceData": InstanceData},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    run(example("py", 0))
    return registered


TEST_CFG = {
    "nms_pre": 1000,
    "score_thr": 0.05,
    "nms": {"type": "nms", "iou_threshold": 0.6},
    "max_per_img": 100,
}


def make_head(mmdet, norm_on_bbox=True):
    torch.manual_seed(0)
    head = mmdet["DualWeightHead"](3, in_channels=4, norm_on_bbox=norm_on_bbox, test_cfg=TEST_CFG)
    head.init_weights()
    return head


FEATURES = [torch.linspace(-1, 1, 2 * 4 * h * w).view(2, 4, h, w) for h, w in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))]


@pytest.mark.parametrize("norm_on_bbox", [True, False])
def test_distances_of_the_mmdetection_head_are_pixels_in_either_mode(mmdet, norm_on_bbox):
    head = make_head(mmdet, norm_on_bbox)
    training, testing = head.train()(FEATURES)[1], head.eval()(FEATURES)[1]
    for stride, level, same in zip(STRIDES, training, testing):
        torch.testing.assert_close(level, same)
        expected = 4 * stride if norm_on_bbox else torch.tensor(4.0).exp().item()
        assert expected / 4 < level.mean() < 4 * expected


def test_the_mmdetection_head_is_trained_by_the_loss(mmdet):
    head = make_head(mmdet).train()
    targets = [
        {"boxes": torch.tensor([[8.0, 8, 40, 56]]), "labels": torch.tensor([2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    samples = [
        SimpleNamespace(gt_instances=InstanceData(bboxes=t["boxes"], labels=t["labels"]), metainfo={}) for t in targets
    ]
    losses = head.loss(FEATURES, samples)
    expected = DualWeightLoss(STRIDES)(*head.eval()(FEATURES), targets)
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name])
    sum(losses.values()).backward()
    for branch in (head.conv_cls, head.conv_reg, head.conv_centerness):
        assert branch.weight.grad.abs().max() > 0


def test_the_mmdetection_head_detects_in_pixels_of_the_original_image(mmdet):
    head = make_head(mmdet).eval()
    metas = [
        {"img_shape": (64, 96), "scale_factor": (2.0, 0.5)},
        {"img_shape": (50, 60, 3), "scale_factor": (1.0, 1.0)},
    ]
    samples = [SimpleNamespace(metainfo=meta) for meta in metas]
    with torch.no_grad():
        scaled, whole = head.predict(FEATURES, samples, rescale=True)
        plain, _ = head.predict(FEATURES, samples)
    assert len(plain.bboxes) > 0
    assert plain.bboxes[:, 2].max() == 96
    assert scaled.bboxes[:, 2].max() == 48
    assert scaled.bboxes[:, 3].max() == 128
    assert whole.bboxes.amax(0)[2:].tolist() == [60, 50]
    assert (plain.scores[:-1] >= plain.scores[1:]).all()
    assert plain.scores.shape == plain.labels.shape == plain.bboxes.shape[:1]


def test_the_config_for_mmdetection_names_the_head(mmdet):
    config = run(example("py", 1))
    assert config["model"]["bbox_head"]["type"] in mmdet
    assert config["custom_imports"]["imports"] == ["dual_weight_head"]
