"""Exported files give what the detector gives, and nothing else becomes a file."""

import json
import re
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torchvision.transforms.v2.functional import resize

from dwtriton import export
from dwtriton.checkpoints.checkpoint import Checkpoint, save_checkpoint
from dwtriton.core.files import write_file
from dwtriton.data.images import read_image
from dwtriton.inference.ready import load_detector
from dwtriton.model.detector import build_detector
from dwtriton.model.postprocess import Candidates, select

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
SIZE = (64, 96)  # of the tiny run
THRESHOLD = 0.015  # what its network finds is not sure of itself


def detections(boxes, scores, labels, image_sizes):
    return select(Candidates(boxes, scores, labels), SIZE, image_sizes, score_threshold=THRESHOLD)


def assert_same_detections(found, expected):
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own["scores"], other["scores"], rtol=0, atol=5e-5)
        order, other_order = (
            sorted(range(len(d["scores"])), key=lambda i, d=d: d["boxes"][i].round().tolist()) for d in (own, other)
        )
        torch.testing.assert_close(own["boxes"][order], other["boxes"][other_order], rtol=0, atol=0.01)
        assert own["labels"][order].tolist() == other["labels"][other_order].tolist()


@pytest.fixture(scope="module")
def weights(finished):
    return finished[0] / "last.pt"


@pytest.fixture(scope="module")
def folder(weights, shapes_root, tmp_path_factory):
    """A checkpoint's .pt2 and .onnx files, written by the command's own functions, and an image."""
    folder = tmp_path_factory.mktemp("exported")
    ready = load_detector(weights, "cpu")
    model = export.ExportedDetector(ready.network)
    program = export.export_program(model, SIZE)
    facts = export.describe(ready.checkpoint, SIZE)
    write_file(folder / "detector.pt2", lambda file: export.write_pt2(program, facts, file))
    write_file(folder / "detector.onnx", lambda file: export.write_onnx(program, facts, file))
    shutil.copyfile(next((shapes_root / "val").glob("*.jpg")), folder / "image.jpg")
    return folder


@pytest.fixture(scope="module")
def images(shapes_root):
    """Validation images in the size that was exported, uint8 [8, 3, H, W]."""
    return torch.stack([resize(read_image(path), SIZE) for path in sorted((shapes_root / "val").glob("*.jpg"))])


def test_a_torch_export_file_gives_the_detections_of_the_detector_for_any_batch(folder, weights, images):
    files = {"metadata.json": ""}
    network = torch.export.load(folder / "detector.pt2", extra_files=files).module()
    ready = load_detector(weights, "cpu", [f"inference.score_threshold={THRESHOLD}"])
    checkpoint = ready.checkpoint
    for batch in (1, 5):
        sizes = [SIZE] * batch
        expected = ready.network.predict(images[:batch], sizes)
        with torch.no_grad():
            found = detections(*network(images[:batch].float()), sizes)
        assert sum(len(d["scores"]) for d in expected) > batch
        assert_same_detections(found, expected)
    facts = json.loads(files["metadata.json"])
    assert facts["class_names"] == checkpoint.class_names
    assert facts["category_ids"] == checkpoint.category_ids
    assert (facts["size"], facts["nms_iou"]) == ([64, 96], checkpoint.config.inference.nms_iou)


def test_an_onnx_file_gives_the_detections_of_the_detector_with_standard_operators(folder, weights, images):
    model = onnx.load(folder / "detector.onnx")
    onnx.checker.check_model(model, full_check=True)
    dims = [value.type.tensor_type.shape.dim[0].dim_param for value in [*model.graph.input, *model.graph.output]]
    assert dims == ["batch"] * 4
    assert {node.domain for node in model.graph.node} <= {""}
    assert not model.functions
    session = onnxruntime.InferenceSession(folder / "detector.onnx", providers=["CPUExecutionProvider"])
    ready = load_detector(weights, "cpu", [f"inference.score_threshold={THRESHOLD}"])
    checkpoint = ready.checkpoint
    for batch in (1, 3):
        sizes = [SIZE] * batch
        expected = ready.network.predict(images[:batch], sizes)
        outputs = map(
            torch.from_numpy, session.run(["boxes", "scores", "labels"], {"images": images[:batch].float().numpy()})
        )
        assert_same_detections(detections(*outputs, sizes), expected)
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["class_names"]) == checkpoint.class_names


def test_the_examples_of_the_page_run_and_agree(folder, monkeypatch):
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 2
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert len(names["names"]) == len(names["boxes"]) == len(names["scores"]) > 0
    height, width = names["image"].shape[1:]
    assert names["boxes"].min() >= 0
    assert names["boxes"][:, 2].max() <= width + 1e-3
    assert names["boxes"][:, 3].max() <= height + 1
    assert names["onnx_scores"].max() == pytest.approx(names["scores"].max().item(), abs=5e-5)


def test_the_command_writes_a_checked_file_and_says_so_in_json(weights, tmp_path, call):
    out = tmp_path / "new" / "detector.pt2"
    arguments = ["--weights", weights, "--size", "64x64", "--out", out]
    code, printed, error = call(export, *arguments, "--json")
    assert (code, error) == (0, "")
    result = json.loads(printed)
    assert (result["file"], result["size"]) == (str(out), [64, 64])
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    code, _, error = call(export, *arguments)
    assert (code, "already exists: add --force" in error) == (2, True)
    code, printed, error = call(export, *arguments, "--force", "--quiet")
    assert (code, printed, error) == (0, "", "")


def test_what_disagrees_does_not_become_a_file(weights, tmp_path, call, monkeypatch):
    out = tmp_path / "detector.pt2"
    monkeypatch.setattr(export, "export_program", lambda *_: None)

    def shifted(_file):
        ready = load_detector(weights, "cpu")
        model = export.ExportedDetector(ready.network)
        return lambda images: [output + (output.ndim == 3) for output in model(images)]  # boxes by a pixel

    monkeypatch.setattr(export, "write_pt2", lambda *_: None)
    monkeypatch.setattr(export, "read_pt2", shifted)
    code, printed, error = call(export, "--weights", weights, "--out", out, "--quiet")
    assert (code, printed) == (1, "")
    assert "candidates of stride 8 are none of the detector's" in error
    assert "was not written" in error
    assert not list(tmp_path.iterdir())


def test_every_kind_of_disagreement_is_found_and_the_order_of_equals_is_not_one(weights, images):
    ready = load_detector(weights, "cpu")
    model = export.ExportedDetector(ready.network)
    batch = images[:2].float()
    with torch.no_grad():
        right = Candidates(*model(batch))
    assert export.disagreement(right, model, batch) is None

    close = (right.scores[:, 1:] - right.scores[:, :-1]).abs() < 2e-5
    image, first = (close & (right.labels[:, 1:] != right.labels[:, :-1])).nonzero()[0].tolist()
    order = torch.arange(right.scores.shape[1]).repeat(2, 1)
    order[image, [first, first + 1]] = order[image, [first + 1, first]]
    swapped = Candidates(
        right.boxes.gather(1, order[..., None].expand(-1, -1, 4)), right.scores, right.labels.gather(1, order)
    )
    assert export.disagreement(swapped, model, batch) is None

    def changed(**parts):
        return export.disagreement(right._replace(**parts), model, batch)

    boxes, scores, labels = (part.clone() for part in right)
    boxes[1, -1, 2] += 0.05
    scores[0, 0] += 1e-3
    labels[0, 0] = (labels[0, 0] + 1) % 2
    assert "1 of" in changed(boxes=boxes)
    assert "scores differ by up to 0.001" in changed(scores=scores)
    assert "candidates of stride 8" in changed(labels=labels)
    assert "out of range" in changed(labels=labels + 100)
    assert "not torch.int64" in changed(labels=labels.int())
    assert "scores differ by up to nan" in changed(scores=scores * torch.nan)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x.pth"], "must end in .pt2 (torch.export) or .onnx"),
        (["--out", "caf\udce9.pt2"], r"cannot write to caf\udce9.pt2"),
        (["--out", "x.onnx", "--dynamic-size"], "--dynamic-size is for .pt2 files"),
        (["--out", "x.pt2", "--dynamic-size", "--size", "64x64"], "not both"),
        (["--out", "x.pt2", "--size", "64x60"], "--size is height x width in multiples of 32 pixels"),
        (["--out", "x.pt2", "--size", "64"], "such as 800x1344, not '64'"),
        (["--out", "x.pt2"], "nothing.pt does not exist"),
        (["--out", "."], "must end in"),
    ],
)
def test_bad_input_is_one_clear_error(arguments, message, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(export, "--weights", "nothing.pt", *arguments)
    assert (code, error.count("\n")) == (2, 1)
    assert message in error
    assert not list(tmp_path.iterdir())


def test_without_the_packages_of_onnx_the_extra_is_named(call, monkeypatch):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    code, _, error = call(export, "--weights", "nothing.pt", "--out", "x.onnx")
    assert (code, error) == (2, "error: ONNX files need onnxscript: pip install 'dwtriton[onnx]'\n")


def fresh_checkpoint(tiny, path, *overrides):
    """Of a network whose heads vary more than fresh ones do, so that its scores are not all alike."""
    cfg = tiny(*overrides)
    torch.manual_seed(0)
    detector = build_detector(cfg)
    for weight in detector.head.parameters():
        if weight.ndim == 4:
            torch.nn.init.normal_(weight, std=0.1)
    classes = cfg.head.num_classes
    save_checkpoint(
        path, Checkpoint(cfg, [f"class {i}" for i in range(classes)], list(range(classes)), 0, detector.state_dict())
    )


VARIANTS = {
    "refine": ["head.refine=true"],
    "P2": ["head.finest_stride=4"],
    "deformable": ["backbone.depth=50", "backbone.deformable=true", "head.deformable=true"],
    **{assigner: [f"loss.assigner={assigner}"] for assigner in ("atss", "simota", "tal")},  # other scores
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "arguments", [["x.pt2"], ["x.pt2", "--dynamic-size"], ["x.onnx"]], ids=["pt2", "any-size", "onnx"]
)
def test_every_kind_of_network_can_be_exported(variant, arguments, tiny, tmp_path, call):
    fresh_checkpoint(tiny, tmp_path / "fresh.pt", *VARIANTS[variant])
    name, *options = arguments
    code, printed, error = call(export, "--weights", tmp_path / "fresh.pt", "--out", tmp_path / name, *options)
    assert (code, error) == (0, "")
    assert "agrees with the detector" in printed
    assert (tmp_path / name).exists()


@pytest.mark.slow
def test_a_file_for_any_size_takes_images_of_any_size(weights, tmp_path, call):
    code, _, _ = call(export, "--weights", weights, "--out", tmp_path / "x.pt2", "--dynamic-size")
    assert code == 0
    network = torch.export.load(tmp_path / "x.pt2").module()
    ready = load_detector(weights, "cpu")
    model = export.ExportedDetector(ready.network)
    for size in ((160, 160), (800, 1344), (608, 480)):
        batch = 255 * torch.rand(2, 3, *size)
        with torch.no_grad():
            assert export.disagreement(Candidates(*network(batch)), model, batch) is None
