"""Packing of targets: layout, capacity, crowd regions, and one clear error for each kind of bad input."""

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from dwtriton.core.targets import PackedTargets, check_packed, check_values, pack_targets


def target(boxes, labels, **more):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels).long(),
    } | more


GOOD = [target([[0, 0, 4, 4], [1, 2, 3, 4]], [3, 0]), target([], []), target([[5, 5, 5, 9]], [1])]


def test_images_follow_each_other():
    packed = pack_targets(GOOD, "cpu")
    assert packed.boxes.tolist() == [[0, 0, 4, 4], [1, 2, 3, 4], [5, 5, 5, 9]]
    assert packed.labels.tolist() == [3, 0, 1]
    assert packed.offsets.tolist() == [0, 2, 2, 3]
    assert packed.iscrowd.tolist() == [False] * 3
    assert packed.weights is None
    dtypes = [tensor.dtype for tensor in packed[:4]]
    assert dtypes == [torch.float32, torch.int64, torch.int32, torch.bool]
    assert packed.batch_size == 3
    assert packed.image_index().tolist() == [0, 0, 2]


def test_without_capacity_the_number_of_boxes_is_marked_unbacked():
    packed = pack_targets(GOOD, "cpu")
    for tensor in (packed.boxes, packed.labels, packed.iscrowd):
        assert 0 in tensor._dynamo_unbacked_indices


def test_capacity_fixes_the_shape_and_padding_is_no_ground_truth():
    packed = pack_targets(GOOD, "cpu", capacity=7)
    assert packed.boxes.shape == (7, 4)
    assert packed.offsets.tolist() == [0, 2, 2, 3]
    assert packed.image_index().tolist() == [0, 0, 2, 3, 3, 3, 3]
    assert packed.box_mask().tolist() == [True] * 3 + [False] * 4
    assert pack_targets([], "cpu", capacity=2).boxes.shape == (2, 4)


def test_more_boxes_than_capacity_are_refused():
    with pytest.raises(ValueError, match=r"3 boxes in the batch, but a capacity of 2"):
        pack_targets(GOOD, "cpu", capacity=2)


@pytest.mark.parametrize("crowd", [torch.tensor([0, 1]), torch.tensor([False, True])])
def test_crowd_regions_are_no_ground_truth(crowd):
    packed = pack_targets([GOOD[0] | {"iscrowd": crowd}, GOOD[2]], "cpu")
    assert packed.box_mask().tolist() == [True, False, True]
    assert packed.crowd_mask().tolist() == [False, True, False]


def test_float64_boxes_keep_their_precision_and_other_keys_are_allowed():
    packed = pack_targets(
        [{"boxes": torch.rand(2, 4).sort().values.double(), "labels": torch.zeros(2).long(), "id": 4}], "cpu"
    )
    assert packed.boxes.dtype == torch.float64


def test_an_empty_batch_packs():
    assert pack_targets([], "cpu").offsets.tolist() == [0]


NO_BOX, NO_LABEL, ONE_BOX = torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(1, 4)
BAD = {
    "not a list": (GOOD[0], r"list with one dict for each image"),
    "not a dict": ([GOOD[0], torch.zeros(4)], r"image 1: expected a dict"),
    "no labels": ([{"boxes": NO_BOX}], r"image 0: 'labels' is missing"),
    "flat boxes": ([{"boxes": torch.zeros(0), "labels": NO_LABEL}], r"image 0: boxes must be \(G, 4\).*zeros\(0, 4\)"),
    "integer boxes": ([{"boxes": ONE_BOX.long(), "labels": torch.zeros(1).long()}], r"float32 or float64"),
    "half boxes": ([{"boxes": ONE_BOX.half(), "labels": torch.zeros(1).long()}], r"float32 or float64"),
    "too few labels": ([GOOD[1], target([[0, 0, 1, 1]], [])], r"image 1: labels must be \(1,\) int64"),
    "no crowd": (
        [{"boxes": ONE_BOX, "labels": torch.zeros(1).long(), "iscrowd": None}],
        r"iscrowd must be \(1,\) bool",
    ),
    "float labels": ([{"boxes": ONE_BOX, "labels": torch.zeros(1)}], r"labels must be \(1,\) int64, not .*float32"),
    "negative label": ([GOOD[1], target([[0, 0, 1, 1]] * 2, [1, -1])], r"image 1, box 1: .*labels start at 0"),
    "not finite": ([GOOD[1], target([[0, 0, float("nan"), 1]], [1])], r"image 1, box 0: .*finite"),
    "inverted": ([target([[0, 0, 1, 1], [3, 0, 1, 1]], [1, 1])], r"image 0, box 1: .*x1 <= x2"),
    "crowd shape": ([GOOD[0] | {"iscrowd": torch.zeros(3).bool()}], r"image 0: iscrowd must be \(2,\)"),
    "crowd dtype": ([GOOD[0] | {"iscrowd": torch.zeros(2)}], r"image 0: iscrowd must be \(2,\) bool or integer"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_targets_name_image_and_index(name):
    targets, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        pack_targets(targets, "cpu")


PACKED = pack_targets(GOOD, "cpu")
BAD_PACKED = {
    "boxes": (PACKED._replace(boxes=torch.zeros(3, 5)), r"boxes must be \(N, 4\)"),
    "labels": (PACKED._replace(labels=torch.zeros(3)), r"labels must be \(N,\) int64"),
    "offsets": (PACKED._replace(offsets=torch.zeros(4).long()), r"offsets must be \(B \+ 1,\) int32"),
    "crowd": (PACKED._replace(iscrowd=torch.zeros(3)), r"iscrowd must be \(N,\) bool"),
    "weights": (PACKED._replace(weights=torch.ones(3).half()), r"weights must be \(N,\) float32 or float64"),
    "rows": (PACKED._replace(labels=torch.zeros(2).long()), r"equally many rows, not \[3, 2, 3\]"),
    "devices": (PACKED._replace(offsets=torch.zeros(4, dtype=torch.int32, device="meta")), r"one device"),
}


@pytest.mark.parametrize("name", BAD_PACKED)
def test_bad_packed_targets_are_refused(name):
    packed, message = BAD_PACKED[name]
    with pytest.raises(ValueError, match=message):
        check_packed(packed)


@pytest.mark.parametrize("offsets", [[0, 2, 1, 3], [1, 2, 3, 3], [0, 1, 2, 4]])
def test_offsets_out_of_order_or_range_are_refused(offsets):
    with pytest.raises(ValueError, match=r"offsets must rise from 0 to at most 3"):
        check_values(PACKED._replace(offsets=torch.tensor(offsets, dtype=torch.int32)))


def test_values_of_padding_do_not_matter_and_labels_are_held_against_the_classes():
    packed = PackedTargets(
        torch.tensor([[0.0, 0, 1, 1], [9, 9, float("nan"), 0]]), torch.tensor([4, -7]), torch.tensor([0, 1]).int()
    )
    check_values(packed, num_classes=5)
    with pytest.raises(ValueError, match=r"image 0, box 0: .*below the number of classes, 4"):
        check_values(packed, num_classes=4)


def test_weights_are_packed_where_an_image_has_them():
    boxes, labels = torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9]]), torch.tensor([0, 1])
    plain = {"boxes": boxes, "labels": labels}
    assert pack_targets([plain, plain], "cpu").weights is None
    packed = pack_targets([plain, {**plain, "weights": torch.tensor([0.5, 0.0]).double()}], "cpu", capacity=5)
    assert packed.weights.tolist() == [1, 1, 0.5, 0, 0]
    assert packed.weights.dtype == torch.float32


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.tensor([1.0, -0.5]), "image 0, box 1: .*weights must be finite and at least 0"),
        (torch.tensor([torch.nan, 1]), "image 0, box 0: .*weights must be finite and at least 0"),
        (torch.tensor([1.0, torch.inf]), "image 0, box 1: .*weights must be finite and at least 0"),
        (torch.tensor([1, 2]), r"image 0: weights must be \(2,\) floating point"),
        (torch.ones(3), r"image 0: weights must be \(2,\) floating point"),
        ([1.0, 1.0], r"image 0: weights must be \(2,\) floating point, not list"),
    ],
)
def test_bad_weights_are_refused(weights, message):
    target = {"boxes": torch.tensor([[0.0, 0, 8, 8], [1, 1, 9, 9]]), "labels": torch.tensor([0, 1]), "weights": weights}
    with pytest.raises(ValueError, match=message):
        pack_targets([target], "cpu")


@pytest.mark.parametrize("form", ["XYXY", "XYWH", "CXCYWH"])
def test_targets_of_torchvisions_own_pipelines(form):
    """Lists of iscrowd, boxes that say what they are, and keys of masks and images."""
    given = tv_tensors.BoundingBoxes(torch.tensor([[1.0, 2, 5, 8], [0, 0, 3, 3]]), format="XYXY", canvas_size=(9, 9))
    boxes = functional.convert_bounding_box_format(given, new_format=form)
    assert boxes.format.name == form
    more = {"iscrowd": [0, 1], "image_id": 7, "masks": None, "segmentation": [[]]}
    packed = pack_targets([{"boxes": boxes, "labels": torch.tensor([1, 0])} | more, GOOD[1]], "cpu")
    assert packed.boxes.tolist() == given.tolist()
    assert type(packed.boxes) is torch.Tensor
    assert packed.crowd_mask().tolist() == [False, True]


def test_rotated_boxes_of_torchvision_are_named():
    boxes = tv_tensors.BoundingBoxes(torch.zeros(1, 5), format="XYWHR", canvas_size=(9, 9))
    with pytest.raises(ValueError, match="targets, image 1: boxes are XYWHR, not upright ones"):
        pack_targets([GOOD[1], {"boxes": boxes, "labels": torch.tensor([1])}], "cpu")
