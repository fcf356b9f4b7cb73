"""`explain --assigner` and `--compare`: which points are drawn as positives of which object, by each assigner."""

import json

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dwtriton import DualWeightAssigner
from dwtriton.core.errors import UserError
from dwtriton.data.prepare import prepare_validation
from dwtriton.explain import __main__ as explain
from dwtriton.explain import compare, draw_comparison
from dwtriton.explain.comparison import ASSIGNERS, compare_sample
from dwtriton.inference.ready import load_detector
from dwtriton.losses import ATSSLoss, FCOSLoss, SimOTALoss, TaskAlignedLoss

STRIDES = (8, 16, 32)
SIZES = [(12, 16), (6, 8), (3, 4)]  # a padded image of 96 x 128
LOSSES = {"fcos": FCOSLoss, "atss": ATSSLoss, "simota": SimOTALoss, "tal": TaskAlignedLoss}
IMAGE = np.random.default_rng(0).integers(0, 256, (90, 121, 3), dtype=np.uint8)
TARGET = {
    "boxes": torch.tensor([[10.0, 20, 70, 84], [0, 60, 30, 90], [60, 5, 118, 60]]),
    "labels": torch.tensor([1, 0, 0]),
    "iscrowd": torch.tensor([0, 1, 0]),
}


@pytest.fixture(scope="module")
def outputs():
    generator = torch.Generator().manual_seed(0)
    logits, distances, objectness = (
        [torch.randn(1, channels, *size, generator=generator) for size in SIZES] for channels in (2, 4, 1)
    )
    return logits, [(level.abs() + 1) * 2 * stride for level, stride in zip(distances, STRIDES)], objectness


@pytest.fixture(scope="module")
def compared(outputs):
    assigners = {"dual_weight": DualWeightAssigner(STRIDES)}
    assigners |= {name: loss(STRIDES) for name, loss in LOSSES.items()}
    return compare(IMAGE, assigners, *outputs, TARGET, ["cat", "dog"])


def test_positive_points_are_those_of_the_assigners(compared, outputs):
    assert list(compared.positives) == list(ASSIGNERS)
    for name, positives in compared.positives.items():
        if name == "dual_weight":
            (weights,) = DualWeightAssigner(STRIDES)(*outputs, [TARGET])
            assert torch.equal(positives.strength, weights.pos)
        else:
            (found,) = LOSSES[name](STRIDES).assign(*outputs, [TARGET])
            for column, box in enumerate((0, 2)):  # 1 is a crowd
                assert torch.equal(positives.strength[:, column], found.weight * (found.box == box))
            assert torch.equal(positives.ignored, found.box == -2)
        assert positives.ignored.any()
    assert [compared.title(box) for box in range(2)] == ["0: dog", "1: cat"]
    assert compared.crowds.tolist() == [[0, 60, 30, 90]]


def test_figures_of_an_object(compared):
    for name in ("fcos", "atss"):  # all points are equally strong
        found = compared.positives[name].summary(0)
        assert found["points"] > 0
        assert found["sum"] == found["points"] == pytest.approx(found["effective"])
    found = compared.positives["dual_weight"].summary(0)
    assert 1 < found["effective"] < found["points"]


def panels(figure):
    """Axes by (title of the column, label of the row)."""
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    rows = [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()]
    names = ((title, row) for row in rows for title in titles)
    return dict(zip(names, figure.axes, strict=True))


def test_cells_have_the_colour_of_their_object_and_ignored_ones_are_dark(compared):
    figure = draw_comparison(compared)
    assert figure.get_suptitle() == "2 objects"
    drawn = panels(figure)
    assert {title for title, _ in drawn} == set(ASSIGNERS)
    fcos = compared.positives["fcos"]
    pixels = drawn["fcos", "P3, stride 8"].images[1].get_array()
    for index in range(SIZES[0][0] * SIZES[0][1]):
        row, column = divmod(index, SIZES[0][1])
        if row * 8 >= IMAGE.shape[0] or column * 8 >= IMAGE.shape[1]:
            continue
        red, green, blue, alpha = pixels[row * 8, column * 8]
        if fcos.ignored[index]:
            assert (red, green, blue, 0 < alpha < 1) == (0, 0, 0, True)
        else:
            assert (alpha == 1) == bool(fcos.strength[index].any())
            assert alpha in (0, 1)
            if alpha:
                assert (red > blue) == bool(fcos.strength[index, 1])  # blue and orange
    label = drawn["fcos", "P3, stride 8"].get_xlabel()
    assert label == f"{int((fcos.strength[:192] > 0).any(1).sum())} positive points"
    FigureCanvasAgg(figure).draw()


def test_one_object_is_drawn_close_up_and_without_the_others(compared):
    figure = draw_comparison(compared, 1)
    assert figure.get_suptitle() == "object 1: cat"
    axes = next(iter(panels(figure).values()))
    assert axes.get_xlim() != (0, IMAGE.shape[1])
    assert [text.get_text() for text in axes.texts] == ["1"]
    with pytest.raises(UserError, match="there is no object 2: the image has 2"):
        draw_comparison(compared, 2)


def test_no_objects_and_objects_without_a_point(outputs):
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assigners = {"tal": TaskAlignedLoss(STRIDES)}
    with pytest.raises(UserError, match="this image has no objects"):
        draw_comparison(compare(IMAGE, assigners, *outputs, empty, ["cat", "dog"]))
    tiny = {"boxes": torch.tensor([[41.0, 41, 42, 42]]), "labels": torch.tensor([0])}
    figure = draw_comparison(compare(IMAGE, assigners, *outputs, tiny, ["cat", "dog"]))
    (axes,) = panels(figure).values()
    assert axes.get_xlabel() == "0 positive points"


def test_the_command_compares_assigners_of_one_checkpoint(finished, tmp_path, call):
    weights = finished[0] / "last.pt"
    options = ["--weights", weights, "--out", tmp_path, "--object", 0, "--json"]
    code, printed, error = call(explain, *options, "--compare", "dual_weight", "tal", "tal")
    assert (code, error) == (0, "")
    result = json.loads(printed)
    assert result["picture"].endswith("-object-0-dual_weight-tal.png")
    ready = load_detector(weights)
    dataset = prepare_validation(ready.config)
    index = dataset.image_ids.index(result["image_id"])
    expected = compare_sample(ready, dataset[index], ["dual_weight", "tal"])
    found = {name: positives.summary(0) for name, positives in expected.positives.items()}
    assert result["objects"] == [{"object": 0, "assigners": found}]
    code, printed, _ = call(explain, "--weights", weights, "--out", tmp_path, "--assigner", "atss")
    assert code == 0
    assert "atss: " in printed
    assert "positive points, as concentrated as" in printed


def test_settings_of_the_config_reach_the_assigners(finished):
    few = load_detector(finished[0] / "last.pt", overrides=["loss.tal.topk=1"])
    dataset = prepare_validation(few.config)
    sample = next(dataset[index] for index in range(len(dataset)) if dataset.box_count(index))
    compared = compare_sample(few, sample, ["tal"])
    assert all(compared.positives["tal"].summary(box)["points"] <= 1 for box in range(len(compared.boxes)))


def test_several_checkpoints_are_not_compared(finished, tmp_path, call):
    weights = finished[0] / "last.pt"
    code, _, error = call(explain, "--weights", weights, weights, "--compare", "tal", "--out", tmp_path)
    assert (code, "assigners are compared on one checkpoint" in error) == (2, True)
