"""`python -m dwtriton.explain` and its Python side: the maps, the pictures, the command."""

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from dwtriton import DualWeightAssigner
from dwtriton.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from dwtriton.core.errors import UserError
from dwtriton.data.coco import Sample
from dwtriton.data.prepare import prepare_validation
from dwtriton.explain import Explanation, draw, draw_strip
from dwtriton.explain import __main__ as explain
from dwtriton.explain.explanation import StrongestPoint
from dwtriton.inference.ready import load_detector

PAGE = Path(__file__).parents[2] / "docs" / "explain.md"
STRIDES = (8, 16, 32)
SIZES = [(12, 16), (6, 8), (3, 4)]  # a padded image of 96 x 128
IMAGE = (90, 121)  # (h, w), no multiple of anything
BOXES = [[10.0, 20.0, 70.0, 84.0], [60.0, 5.0, 118.0, 60.0], [41.0, 40.0, 43.0, 43.0]]  # the last holds no point
LABELS = [1, 0, 1]


def weights_of(boxes, labels, classes=2, seed=0):
    """What the assigner makes of random head outputs for these boxes."""
    generator = torch.Generator().manual_seed(seed)
    cls_logits, box_distances, objectness = (
        [torch.randn(1, channels, *size, generator=generator) for size in SIZES] for channels in (classes, 4, 1)
    )
    box_distances = [(level.abs() + 1) * 2 * stride for level, stride in zip(box_distances, STRIDES)]
    target = {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}
    (weights,) = DualWeightAssigner(STRIDES)(cls_logits, box_distances, objectness, [target])
    return weights


def explanation(boxes=BOXES, labels=LABELS, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (*IMAGE, 3), dtype=np.uint8)
    weights = weights_of(boxes, labels, seed=seed)
    return Explanation(pixels, weights, torch.tensor(boxes), torch.tensor(labels), SIZES, ["cat", "dog"], STRIDES)


def point_of(level, x, y):
    """Number of the point whose cell holds the pixel (x, y)."""
    before = sum(height * width for height, width in SIZES[:level])
    return before + y // STRIDES[level] * SIZES[level][1] + x // STRIDES[level]


def axes_named(figure, row, column):
    """The panel in the row of this label and the column of this title (the first row holds the titles)."""
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    columns = sum(bool(axes.get_title()) for axes in panels)
    titles = [axes.get_title() for axes in panels[:columns]]
    rows = [axes.get_ylabel() for axes in panels[::columns]]
    return panels[rows.index(row) * columns + titles.index(column)]


def texts(figure):
    return [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes if axes.get_title())]


def test_every_pixel_of_a_map_has_the_value_of_the_cell_that_covers_it():
    explained = explanation()
    weights = explained.weights
    for box, label in enumerate(LABELS):
        truth = {
            "score": weights.score[:, label],
            "iou": weights.iou[:, box],
            "prior": weights.prior[:, box],
            "pos": weights.pos[:, box],
            "neg": weights.neg[:, label] * weights.score[:, label] ** 2,
        }
        for quantity, values in truth.items():
            combined = explained.map(quantity, box)
            assert combined.shape == IMAGE
            for x, y in [(0, 0), (7, 7), (8, 7), (42, 41), (63, 64), (100, 33), (IMAGE[1] - 1, IMAGE[0] - 1)]:
                of_levels = [float(values[point_of(level, x, y)]) for level in range(len(STRIDES))]
                assert [explained.map(quantity, box, level)[y, x] for level in range(len(STRIDES))] == of_levels
                assert combined[y, x] == max(of_levels)


def test_a_cell_is_centred_on_its_point():
    explained = explanation()
    for level, stride in enumerate(STRIDES):
        for x, y in explained.points_inside(0, level):
            patch = explained.map("prior", 0, level)[int(y) - stride // 2 :, int(x) - stride // 2 :][:stride, :stride]
            number = point_of(level, int(x), int(y))
            assert explained.weights.points[number].tolist() == [x, y]
            assert (patch == float(explained.weights.prior[number, 0])).all()


def test_the_strongest_point_is_where_the_positive_weight_is_largest():
    explained = explanation()
    weights = explained.weights
    for box in (0, 1):
        best = int(weights.pos[:, box].argmax())
        found = explained.strongest_point(box)
        assert [found.x, found.y] == weights.points[best].tolist()
        assert point_of(found.level, int(found.x), int(found.y)) == best
        values = [weights.pos[best, box], weights.score[best, LABELS[box]], weights.iou[best, box]]
        assert list(found[3:]) == [*map(float, values), float(weights.prior[best, box])]
        summary = explained.summary(box)
        assert summary["points"] == int(weights.inside[:, box].sum())
        assert summary["positive_sum"] == pytest.approx(float(weights.pos[:, box].sum()), rel=1e-6)
        assert summary["strongest_point"]["stride"] == STRIDES[found.level]
        assert sum(explained.positive_sum(box, level) for level in range(3)) == pytest.approx(summary["positive_sum"])
    assert isinstance(explained.strongest_point(0), StrongestPoint)
    assert explained.strongest_point(2) is None
    assert explained.summary(2)["strongest_point"] is None


@pytest.mark.parametrize(
    ("box", "window"),
    [
        ([50.0, 40.0, 60.0, 50.0], (31, 21, 79, 69)),  # in the middle: a small box still sees six cells of 8 pixels
        ([0.0, 0.0, 40.0, 30.0], (0, 0, 64, 64)),  # moved into the image
        ([91.0, 50.0, 121.0, 90.0], (57, 26, 121, 90)),
        ([30.0, 10.0, 90.0, 80.0], (15, 0, 105, 90)),  # no larger than the image is high
        ([0.0, 0.0, 121.0, 90.0], (-3, -18, 124, 109)),  # beyond it only where the box asks for it
    ],
)
def test_the_window_is_a_square_around_the_box_within_the_image_where_that_can_be(box, window):
    assert explanation([box], [0]).window(0) == window


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level_sizes": SIZES[:2]}, "2 level_sizes for the strides"),
        ({"level_sizes": [(12, 16), (6, 8), (3, 5)]}, "255 cells together, the weights 252 points"),
        ({"level_sizes": [(16, 12), (6, 8), (3, 4)]}, "a level of 16 x 12 cells of 8 pixels does not cover"),
        ({"boxes": torch.zeros(4, 4), "labels": torch.zeros(4)}, "4 boxes and 4 labels, but weights of 3 boxes"),
        ({"labels": torch.zeros(2)}, "3 boxes and 2 labels"),
    ],
)
def test_parts_that_do_not_fit_together_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(explanation(), **change)


def test_levels_are_named_as_in_a_pyramid():
    assert explanation().level_name(2) == "P5, stride 32"
    odd = replace(explanation(), strides=(8, 16, 33))
    assert odd.level_name(2) == "stride 33"


def test_one_object_is_drawn_level_by_level():
    explained = explanation()
    figure = draw(explained, 0)
    best = explained.strongest_point(0)
    assert figure.get_suptitle().startswith("object 0: dog\nlargest positive weight ")
    for value in (best.score, best.iou, best.prior):
        assert f" {value:.2f}" in " ".join(figure.get_suptitle().split())
    columns = ["max over levels", "P3, stride 8", "P4, stride 16", "P5, stride 32"]
    assert texts(figure)[1:] == columns
    rows = ["image", "score", "IoU", "centre prior", "positive weight", "negative weight"]
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert labels[:: len(columns)] == rows
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    assert len(bars) == 5
    assert all(axes.get_ylabel() for axes in bars)

    for level, title in enumerate(columns[1:]):
        panel = axes_named(figure, "positive weight", title)
        total, largest = explained.positive_sum(0, level), explained.map("pos", 0, level).max()
        assert panel.get_xlabel() == f"max {largest:.2f}, Σ {total:.2f}"
        assert (
            axes_named(figure, "image", title).get_xlabel() == f"{len(explained.points_inside(0, level))} points inside"
        )
        marked = [line for line in panel.lines if line.get_marker() == "+"]
        assert bool(marked) == (level == best.level)

    panel = axes_named(figure, "positive weight", "max over levels")
    shown = panel.images[1].get_array()  # the colours over the grey image
    left, top, _, _ = explained.window(0)
    assert shown[int(best.y) - top, int(best.x) - left, 3] == 1  # the largest value hides the image
    outside = explained.map("pos", 0)[top:, left:][: shown.shape[0], : shown.shape[1]] == 0
    assert outside.any()
    assert (shown[outside][:, 3] == 0).all()


def test_a_box_without_points_is_drawn_and_said():
    figure = draw(explanation(), 2)
    assert "no point of the pyramid lies inside the box" in figure.get_suptitle()
    assert axes_named(figure, "positive weight", "P3, stride 8").get_xlabel() == "max 0, Σ 0"


def test_the_picture_of_all_says_how_many_it_leaves_out():
    boxes = [[5.0, 5.0, 40.0 + 4 * number, 40.0 + 4 * number] for number in range(10)]
    figure = draw(explanation(boxes, [0] * 10))
    assert figure.get_suptitle() == "10 objects, the 8 largest shown"
    assert texts(figure)[1:] == [f"{number}: cat" for number in range(9, 1, -1)]
    assert draw(explanation(BOXES[:1], LABELS[:1])).get_suptitle() == "1 object"
    nothing = explanation([[0.0, 0.0, 9.0, 9.0]], [0])
    weights = nothing.weights
    empty = weights._replace(**{name: getattr(weights, name)[:, :0] for name in ("inside", "iou", "prior", "pos")})
    with pytest.raises(UserError, match="no objects"):
        draw(replace(nothing, weights=empty, boxes=torch.zeros(0, 4), labels=torch.zeros(0)))


def test_class_names_are_no_mathematics():
    figure = draw(replace(explanation(), names=["$a^$", "$b^$"]))
    FigureCanvasAgg(figure).draw()  # raises for what is taken for a formula and is none
    assert texts(figure)[1:] == ["0: $b^$", "1: $a^$", "2: $b^$"]


def test_a_strip_has_one_scale_for_all_checkpoints():
    steps = [("early", explanation(seed=1)), ("late", explanation(seed=2))]
    figure = draw_strip(steps, 1)
    assert texts(figure) == ["object 1: cat", "early", "late"]
    largest = [explained.map("pos", 1).max() for _, explained in steps]
    assert axes_named(figure, "positive weight", "early").get_xlabel().startswith(f"max {largest[0]:.2f}, ")
    (bar,) = [axes for axes in figure.axes if "pos" in axes.get_ylabel() and axes.get_label() == "<colorbar>"]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0", f"{max(largest):.2f}"]
    peaks = [axes_named(figure, "positive weight", title).images[1].get_array()[..., 3].max() for title, _ in steps]
    np.testing.assert_allclose(peaks, np.sqrt(largest / max(largest)), rtol=1e-5)


@pytest.mark.parametrize("draws", [draw, lambda explained, box: draw_strip([("", explained)], box)])
def test_an_object_that_is_not_there_is_an_error(draws):
    for box in (3, -1):
        with pytest.raises(UserError, match=rf"no object {box}: the image has 3, numbered from 0"):
            draws(explanation(), box)


@pytest.fixture(scope="module")
def loaded(finished):
    """The detector of the finished run and the validation data."""
    ready = load_detector(finished[0] / "last.pt")
    return ready, prepare_validation(ready.config)


def test_an_image_is_explained_by_what_the_head_says_of_it(loaded):
    ready, dataset = loaded
    sample = dataset[0]
    explained = explain.explain(ready, sample)
    assert explained.image.shape == (*sample.image.shape[1:], 3)
    assert torch.equal(explained.boxes, sample.target["boxes"])
    height, width = explained.level_sizes[0]
    assert (height % 4, width % 4) == (0, 0)  # of the padded image
    pixels = torch.zeros(1, 3, height * 8, width * 8)
    mean, std = (torch.tensor(values)[:, None, None] for values in (ready.config.data.mean, ready.config.data.std))
    pixels[0, :, : sample.image.shape[1], : sample.image.shape[2]] = (sample.image - mean) / std
    with torch.no_grad():
        cls_logits, box_distances, objectness = ready.network.detector.head_outputs(pixels)
    (truth,) = DualWeightAssigner()(cls_logits, box_distances, objectness, [sample.target])
    for name in ("points", "inside", "score", "pos", "neg"):
        torch.testing.assert_close(getattr(explained.weights, name), getattr(truth, name))


def test_crowds_are_no_objects_but_silence_the_negative_weights(loaded):
    ready, dataset = loaded
    sample = next(dataset[index] for index in range(len(dataset)) if dataset.box_count(index) > 1)
    plain = explain.explain(ready, sample)
    crowd = torch.zeros(len(plain.boxes), dtype=torch.bool)
    crowd[0] = True
    explained = explain.explain(ready, replace(sample, target={**sample.target, "iscrowd": crowd}))
    assert torch.equal(explained.boxes, plain.boxes[1:])
    torch.testing.assert_close(explained.weights.pos, plain.weights.pos[:, 1:])
    inside = plain.weights.inside[:, 0].numpy()
    assert inside.any()
    assert (explained.values("neg", 0)[inside] == 0).all()
    assert (explained.values("neg", 0)[~inside] > 0).any()


def test_an_unreadable_image_is_an_error(loaded):
    broken = Sample(None, {}, 7, "x.jpg", (1.0, 1.0), ["x.jpg: truncated"])
    with pytest.raises(UserError, match=r"cannot be used: x\.jpg: truncated"):
        explain.explain(loaded[0], broken)


def test_the_command_draws_all_objects_and_lists_them(finished, loaded, tmp_path, call):
    dataset = loaded[1]
    index = next(index for index in range(len(dataset)) if dataset.box_count(index))
    arguments = ["--weights", finished[0] / "last.pt", "--out", tmp_path / "out"]
    code, printed, error = call(explain, *arguments)
    assert code == 0, error
    picture = tmp_path / "out" / f"{dataset.image_ids[index]}.png"
    assert f"picture: {picture}" in printed
    assert printed.count("  object ") == dataset.box_count(index)
    assert printed.count("largest positive weight") + printed.count("no point") == dataset.box_count(index)
    with Image.open(picture) as drawn:
        assert min(drawn.size) > 300
    before = picture.read_bytes()
    code, _, error = call(explain, *arguments)
    assert (code, f"{picture} already exists: add --force" in error) == (2, True)
    picture.write_bytes(b"old")
    assert call(explain, *arguments, "--force", "--quiet") == (0, "", "")
    assert picture.read_bytes() == before
    assert [path.name for path in picture.parent.iterdir()] == [picture.name]


def test_one_object_as_pdf_with_its_figures_as_json(finished, loaded, tmp_path, call):
    ready, dataset = loaded
    index = next(index for index in range(len(dataset)) if dataset.box_count(index) > 1)
    by_id = ["--image", dataset.image_ids[index], "--object", 1, "--format", "pdf", "--json"]
    code, printed, _ = call(explain, "--weights", finished[0] / "last.pt", "--out", tmp_path, *by_id)
    assert code == 0
    result = json.loads(printed)
    picture = tmp_path / f"{dataset.image_ids[index]}-object-1.pdf"
    assert result["picture"] == str(picture)
    content = picture.read_bytes()
    assert content.startswith(b"%PDF")
    assert b"/Type3" not in content
    assert (result["image"], result["image_id"]) == (dataset.paths[index], dataset.image_ids[index])
    explained = explain.explain(ready, dataset[index])
    (step,) = result["checkpoints"]
    assert step["iteration"] == ready.checkpoint.iteration
    assert step["objects"] == [explained.summary(1)]


def test_checkpoints_are_shown_in_the_order_of_their_iterations(finished, tmp_path, call):
    last = load_checkpoint(finished[0] / "last.pt")
    save_checkpoint(tmp_path / "early.pt", last._replace(iteration=1, class_names=[]))
    files = [finished[0] / "last.pt", tmp_path / "early.pt"]
    code, printed, _ = call(explain, "--weights", *files, "--object", 0, "--out", tmp_path, "--format", "svg")
    assert code == 0
    assert f"{files[1]} has no class names; category ids are shown" in printed
    assert printed.index(f"{files[1]}, iteration 1\n") < printed.index(f"{files[0]}, iteration {last.iteration}\n")
    (picture,) = tmp_path.glob("*-object-0-strip.svg")
    assert f"picture: {picture}" in printed


@pytest.mark.parametrize("name", ["object.svg", "new/object.PDF", "object.png"])
def test_out_can_be_a_file_whose_suffix_names_the_format(name, finished, tmp_path, monkeypatch, call):
    monkeypatch.setattr(explain, "draw", lambda *_: Figure())
    out = tmp_path / name
    arguments = ["--weights", finished[0] / "last.pt", "--object", 0, "--out", out]
    code, printed, error = call(explain, *arguments)
    assert (code, error) == (0, "")
    assert f"picture: {out}\n" in printed
    begin = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}[out.suffix.lower()]
    assert out.read_bytes().startswith(begin)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert call(explain, *arguments)[0] == 2  # it exists
    same_format = ["--format", out.suffix.lower()[1:], "--force"]
    assert call(explain, *arguments, *same_format)[0] == 0


def test_a_folder_may_have_any_name(finished, tmp_path, monkeypatch, call):
    monkeypatch.setattr(explain, "draw", lambda *_: Figure())
    for name in ("v1.2", "old.png"):
        (tmp_path / "old.png").mkdir(exist_ok=True)
        arguments = ["--weights", finished[0] / "last.pt", "--object", 0, "--out", tmp_path / name, "--format", "svg"]
        assert call(explain, *arguments)[0] == 0
        (picture,) = (tmp_path / name).iterdir()
        assert picture.name.endswith("-object-0.svg")


def test_a_suffix_and_a_format_that_contradict_each_other_are_an_error_before_any_work(tmp_path, call):
    for out, options, message in [
        ("a.svg", ["--format", "pdf"], "a.svg and --format pdf contradict each other"),
        ("a.jpg", [], "a.jpg is no folder, and pictures are written as .png, .pdf or .svg"),
        ("a.bmp", [], "a.bmp is no folder, and pictures are written as .png, .pdf or .svg"),
    ]:
        code, printed, error = call(explain, "--weights", "absent.pt", "--out", tmp_path / out, *options)
        assert (code, printed, error.count("\n"), message in error) == (2, "", 1, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["torch", "auto", "triton"])
def test_the_backend_of_the_config_is_used(backend, finished, loaded, monkeypatch):
    used = []

    class Spy(DualWeightAssigner):
        def __init__(self, strides, soft_prior, backend):
            used.append(backend)
            super().__init__(strides, soft_prior, "torch")

    monkeypatch.setattr("dwtriton.explain.explanation.DualWeightAssigner", Spy)
    ready = load_detector(finished[0] / "last.pt", overrides=[f"loss.backend={backend}"])
    explain.explain(ready, load_sample(loaded))
    assert used == [backend]


@pytest.mark.skipif(torch.cuda.is_available() or "TRITON_INTERPRET" in os.environ, reason="the kernels can run here")
def test_a_backend_that_cannot_run_here_is_an_error_with_its_remedy(finished, tmp_path, call):
    arguments = ["--weights", finished[0] / "last.pt", "--out", tmp_path, "--set", "loss.backend=triton"]
    code, _, error = call(explain, *arguments)
    assert (code, 'backend="triton" needs a GPU' in error, 'use backend="torch"' in error) == (2, True, True)


def test_nothing_is_written_after_bad_input(finished, loaded, shapes_root, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    weights = ["--weights", finished[0] / "last.pt"]
    last = load_checkpoint(finished[0] / "last.pt")
    other, fewer = tmp_path / "other.pt", tmp_path / "fewer.pt"
    save_checkpoint(other, last._replace(class_names=last.class_names[::-1]))
    save_checkpoint(fewer, last._replace(class_names=[], category_ids=last.category_ids[1:]))
    empty = tmp_path / "data"
    shutil.copytree(shapes_root, empty, ignore=shutil.ignore_patterns("train"))
    truth = json.loads((empty / "annotations" / "val.json").read_text())
    truth["annotations"] = []
    (empty / "annotations" / "val.json").write_text(json.dumps(truth))
    broken, intact, *_ = (empty / "val").iterdir()
    broken.write_bytes(broken.read_bytes()[:300])
    count = len(load_sample(loaded).target["labels"])
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for arguments, message in [
        ([*weights, finished[0] / "best.pt"], "choose it with --object N"),
        ([*weights, "--object", count], f"there is no object {count}: the image has {count}, numbered from 0"),
        ([*weights, "--object", -1], "there is no object -1"),
        ([*weights, "--image", "none.jpg"], "has no image 'none.jpg', neither as a file name nor as an id"),
        ([*weights, "--data", empty, "--image", intact.name], "has no objects: choose another image with --image"),
        ([*weights, "--data", empty, "--image", f"val/{broken.name}"], f"the image cannot be used: {broken}"),
        ([*weights, "--data", empty / "val"], "lacks val, annotations/val.json"),
        ([*weights, "--data", tmp_path / "nowhere"], "lacks val, annotations/val.json"),  # and is not generated
        (["--weights", "none.pt"], "none.pt does not exist"),
        (["--weights", other], f"other.pt knows {last.class_names[::-1]}, the data has {last.class_names}"),
        ([*weights, fewer, "--object", 0], f"fewer.pt knows {[str(id_) for id_ in last.category_ids[1:]]}"),
        ([*weights, "--set", "data.shorty=3"], "unknown key 'data.shorty'"),
    ]:
        code, _, error = call(explain, *arguments)
        assert (code, error.startswith("error: "), message in error) == (2, True, True), (arguments, error)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_the_examples_of_the_page_run(finished, tmp_path, monkeypatch):
    (tmp_path / "runs" / "RUN").mkdir(parents=True)
    shutil.copy(finished[0] / "last.pt", tmp_path / "runs" / "RUN" / "last.pt")
    monkeypatch.chdir(tmp_path)
    names = {}
    for example in re.findall(r"```py(?:thon)?\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(example, str(PAGE), "exec"), names)
    assert names["heat"].shape == (90, 120)
    assert names["figure"].get_suptitle().startswith("object 0: ")


def load_sample(loaded):
    """The sample that the command takes without --image."""
    dataset = loaded[1]
    return next(dataset[index] for index in range(len(dataset)) if dataset.box_count(index))
