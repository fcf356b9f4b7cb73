"""Wrong kinds of arguments to the public API: ValueError or TypeError with the argument's name, whatever they are."""

import pytest
import torch

import dwtriton
from dwtriton import DualWeightAssigner, DualWeightLoss, PackedTargets, build_detector, pack_targets, postprocess
from dwtriton.losses import ATSSLoss, FCOSLoss, SimOTALoss, TaskAlignedLoss

STRIDES = (8, 16)
SIZES = ((4, 6), (2, 3))
POINT_LOSSES = (ATSSLoss, FCOSLoss, SimOTALoss, TaskAlignedLoss)
STRANGE = [None, 5, "x", 2.5, [], {}, object(), torch.zeros(2), [None], ["a"], True]


def arguments(images=1):
    maps = [[torch.zeros(images, channels, *size) for size in SIZES] for channels in (2, 4, 1)]
    targets = [{"boxes": torch.tensor([[4.0, 4, 20, 20]]), "labels": torch.tensor([1])} for _ in range(images)]
    return {**dict(zip(("cls_logits", "box_distances", "objectness"), maps)), "targets": targets}


def with_first_level(name, level):
    given = arguments()
    return given | {name: [level, *given[name][1:]]}


@pytest.mark.parametrize(
    "strides", [8, None, "816", ("8", "16"), (8, -1), (8, float("nan")), (8, float("inf")), ()], ids=str
)
def test_strides(strides):
    maps = {key: value for key, value in arguments().items() if key != "targets"}
    for call in (DualWeightLoss, DualWeightAssigner, lambda s: postprocess(**maps, image_sizes=[(32, 48)], strides=s)):
        with pytest.raises(ValueError, match="strides must be positive pixels, one for each level, not"):
            call(strides)


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
@pytest.mark.parametrize("name", ["cls_logits", "box_distances", "objectness", "targets"])
def test_arguments_of_the_loss(name, strange):
    if name == "objectness" and strange is None:
        return  # a head without that branch
    for module in (DualWeightLoss(STRIDES), DualWeightAssigner(STRIDES), *(loss(STRIDES) for loss in POINT_LOSSES)):
        with pytest.raises((ValueError, TypeError), match=name):
            module(**arguments() | {name: strange})


@pytest.mark.parametrize("strange", [None, 5, "x", [], torch.zeros(2), torch.zeros(1, 3, 32, 48, dtype=torch.uint8)])
def test_images_and_sizes_of_a_detector(strange, small_config):
    detector = build_detector(small_config()).eval()
    images = torch.zeros(1, 3, 32, 64)
    for call in (detector, detector.head_outputs, lambda i: detector.predict(i, [(32, 64)])):
        with pytest.raises(ValueError, match="images must be"):
            call(strange)
    if not isinstance(strange, torch.Tensor):
        with pytest.raises(ValueError, match="image_sizes"):
            detector.predict(images, strange)
        with pytest.raises(ValueError, match="score_threshold"):
            detector.predict(images, [(32, 64)], score_threshold=strange)


def test_sparse_tensors():
    sparse = torch.zeros(1, 2, 4, 6).to_sparse()
    for module in (DualWeightLoss(STRIDES), DualWeightAssigner(STRIDES)):
        with pytest.raises(ValueError, match=r"cls_logits\[0\] must be a dense tensor, not .* sparse_coo"):
            module(**with_first_level("cls_logits", sparse))
    with pytest.raises(ValueError, match="image 0: boxes must be a dense tensor, not"):
        pack_targets([{"boxes": torch.zeros(1, 4).to_sparse(), "labels": torch.tensor([1])}], "cpu")


@pytest.mark.parametrize("strange", STRANGE, ids=repr)
@pytest.mark.parametrize("name", PackedTargets._fields)
def test_parts_of_packed_targets(name, strange):
    if strange is None and name in PackedTargets._field_defaults:
        return
    given = arguments()
    packed = pack_targets(given["targets"], "cpu")._replace(**{name: strange})
    with pytest.raises(ValueError, match=f"packed {name}|equally many rows"):
        DualWeightLoss(STRIDES)(**given | {"targets": packed})


@pytest.mark.parametrize("strange", [5.5, "5", True, [], float("nan")], ids=repr)
def test_capacities(strange):
    with pytest.raises(ValueError, match="capacity must be a number of boxes or None, not"):
        pack_targets(arguments()["targets"], "cpu", capacity=strange)
    with pytest.raises(ValueError, match="capacity of -1"):
        pack_targets(arguments()["targets"], "cpu", capacity=-1)


@pytest.mark.parametrize("key", ["boxes", "labels", "iscrowd", "weights"])
@pytest.mark.parametrize("strange", [*STRANGE[:7], ["a"], [[None]]], ids=repr)
def test_parts_of_targets(key, strange):
    target = arguments()["targets"][0] | {key: strange}
    with pytest.raises(ValueError, match=f"targets, image 0: .*{key}"):
        pack_targets([target], "cpu")


@pytest.mark.parametrize("strange", [None, "x", 5, [], float("nan")], ids=repr)
@pytest.mark.parametrize("name", ["backend", "soft_prior"])
def test_settings_of_the_loss(name, strange):
    with pytest.raises(ValueError, match=name):
        DualWeightLoss(STRIDES, **{name: strange})


POSTPROCESSING = {
    "score_threshold": [None, "x", -0.1, 1.1, float("nan"), []],
    "nms_iou": [None, "x", -0.1, 2, float("nan"), []],
    "candidates_per_level": [None, "5", 0, -1, 2.5, True],
    "max_detections": [None, "5", 0, -1, 2.5, True],
    "score": [None, 5, "sum"],
    "image_sizes": [None, 5, "x", [5], [("a", "b")], [(1, 2, 3)], [(float("nan"), 8)], [(-1, 8)], [None]],
    "scale_factors": [5, "x", [5], [("a", "b")], [(1, 2, 3)], [(float("inf"), 1)], [(0, 1)], [None]],
}


@pytest.mark.parametrize(
    ("name", "strange"), [(n, v) for n, values in POSTPROCESSING.items() for v in values], ids=repr
)
def test_settings_of_postprocess(name, strange):
    given = {key: value for key, value in arguments().items() if key != "targets"} | {"image_sizes": [(32, 48)]}
    assert len(postprocess(**given, strides=STRIDES)) == 1
    with pytest.raises(ValueError, match=name):
        postprocess(**given | {name: strange}, strides=STRIDES)


def test_no_images_have_no_detections():
    given = {key: value for key, value in arguments(images=0).items() if key != "targets"}
    for scales in (None, []):
        assert postprocess(**given, image_sizes=[], scale_factors=scales, strides=STRIDES) == []
    with pytest.raises(ValueError, match=r"cls_logits\[0\] must be \(B, C, H, W\) and not empty"):
        DualWeightLoss(STRIDES)(**given, targets=[])


@pytest.mark.parametrize("strange", [None, 5, [], object()], ids=repr)
def test_configs_and_checkpoints(strange):
    with pytest.raises(ValueError, match="name must be that of a config"):
        dwtriton.load_config(strange)
    with pytest.raises(TypeError, match="cfg must be a Config"):
        dwtriton.build_detector(strange)
    with pytest.raises(ValueError, match="path must be that of a checkpoint"):
        dwtriton.load_detector(strange)


def test_distances_that_are_no_distances():
    """Documented, since a check would wait for the device."""
    inside, outside = (0, slice(None), 1, 1), (0, slice(None), 3, 5)

    def losses(place, value):
        given = arguments()
        given["box_distances"] = [torch.full_like(level, 8.0) for level in given["box_distances"]]
        given["box_distances"][0][place] = value
        return torch.stack(list(DualWeightLoss(STRIDES)(**given).values()))

    usual = losses(outside, 8.0)
    for value in (float("nan"), float("inf"), -1.0, -1000.0):
        assert torch.equal(losses(outside, value), usual)
    for value in (float("nan"), float("inf")):
        assert losses(inside, value)[:2].isnan().all()
    assert not torch.equal(losses(inside, -1.0), usual)


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "nan"), (-9.0, "swapped")])
def test_boxes_of_distances_that_are_no_distances(value, kind):
    given = {key: value for key, value in arguments().items() if key != "targets"}
    given["box_distances"] = [torch.full_like(level, value) for level in given["box_distances"]]
    (found,) = postprocess(**given, image_sizes=[(32, 48)], strides=STRIDES)
    boxes = found["boxes"]
    assert len(boxes)
    assert boxes.isnan().all() if kind == "nan" else (boxes[:, :2] >= boxes[:, 2:]).all()
