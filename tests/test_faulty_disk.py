"""Commands on a disk that fails: one line with the cause, exit code 1, and only whole files, wherever it happens."""

import math
import shutil

import pytest
import torch

from dwtriton import export
from dwtriton.data import __main__ as data_command
from dwtriton.evaluate import __main__ as evaluate_command
from dwtriton.explain import __main__ as explain_command
from dwtriton.inference.ready import load_detector
from dwtriton.predict import __main__ as predict_command
from dwtriton.weights import __main__ as weights_command
from tests.support.faulty_disk import BROKEN, FULL, READ_ONLY, faulty_disk, faulty_folder, largest_file
from tests.support.generated_cases import THOROUGH
from tests.support.videos import flat, make_video

FAULTS = {FULL: "No space left on device", BROKEN: "Input/output error", READ_ONLY: "Read-only file system"}
EXPORT_PROGRAM = export.export_program  # before a test replaces it


@pytest.fixture(scope="module")
def program(finished):
    """What `export` writes, which takes it most of its time to make."""
    ready = load_detector(finished[0] / "last.pt", "cpu")
    return EXPORT_PROGRAM(export.ExportedDetector(ready.network), (64, 96))


@pytest.fixture
def commands(finished, shapes_root, tmp_path, monkeypatch, request):
    """Module and arguments of each command, but for --out."""
    monkeypatch.setattr(export, "export_program", lambda *_: request.getfixturevalue("program"))
    weights = ["--weights", finished[0] / "last.pt"]
    images = sorted((shapes_root / "val").iterdir())[:2]
    formats = ["--format", "csv", "--format", "yolo"]
    video = make_video(tmp_path / "video.mp4", [flat(level) for level in (0, 90, 200)])
    yolo = tmp_path / "yolo"
    for split in ("train", "val"):
        shutil.copytree(shapes_root / "val", yolo / "images" / split)
        (yolo / "labels" / split).mkdir(parents=True)
        (yolo / "labels" / split / f"{images[0].stem}.txt").write_text("0 0.5 0.5 0.5 0.5")
    (yolo / "data.yaml").write_text("names: [a]")
    one_split = tmp_path / "one-split"
    for path in (shapes_root / "val", shapes_root / "annotations/val.json"):
        (one_split / path.relative_to(shapes_root)).parent.mkdir(parents=True, exist_ok=True)
        (one_split / path.relative_to(shapes_root)).symlink_to(path)
    return {
        "predict": (
            predict_command,
            [*images, video, *weights, "--threshold", 0, *formats],
        ),
        "evaluate": (evaluate_command, weights),
        "explain": (explain_command, [*weights, "--object", 0]),
        "check": (data_command, ["check", shapes_root]),
        "convert": (data_command, ["convert", yolo]),
        "split": (data_command, ["split", one_split, "--val", 0.25]),
        "tile": (data_command, ["tile", shapes_root, "--size", 64]),
        "to-mmdet": (weights_command, ["to-mmdet", finished[0] / "last.pt"]),
        "to-safetensors": (weights_command, ["to-safetensors", finished[0] / "last.pt"]),
        "pt2": (export, [*weights, "--size", "64x96"]),
        "onnx": (export, [*weights, "--size", "64x96"]),
    }


def place(tmp_path, name):
    """Where a command writes to: a file of its own kind or a folder."""
    return tmp_path / "out" / (f"file.{name}" if name in ("pt2", "onnx", "to-mmdet", "to-safetensors") else "folder")


def written(tmp_path):
    """All files below, by name."""
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    return {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}


@pytest.fixture
def fails(commands, tmp_path, call):
    """fails(name, healthy): run a command while `healthy` holds; it ends with one line, and whole files alone are left.

    `fails.whole` are the files of a command without faults, once `fails.finish(name, healthy)` has made them.
    """

    def run(name, disk):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        module, arguments = commands[name]
        with disk as found:
            return *call(module, *arguments, "--out", place(tmp_path, name), "--quiet"), found

    def finish(name, healthy):
        code, _, _, disk = run(name, healthy)
        fails.whole = written(tmp_path)
        assert code == 0
        assert fails.whole
        return disk

    def fails(name, faulty, cause):
        code, _, error, _ = run(name, faulty)
        assert error.startswith(("error: ", f"error: {tmp_path}/out"))
        assert error.endswith((f" cannot be written: {cause}\n", f" cannot be made: {cause}\n"))
        assert code == (1 if "written" in error else 2)
        assert error.count("\n") == 1
        left = written(tmp_path)
        assert left == {file: fails.whole[file] for file in left}  # no other file, and each as it should be
        return left

    fails.finish = finish
    return fails


QUICK = ("convert", "split", "tile", "to-mmdet")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("check", "evaluate", "explain", "to-safetensors")]
SLOW += [pytest.param(name, marks=pytest.mark.slow) for name in ("pt2", "onnx")]


@pytest.mark.parametrize("name", ["predict", *QUICK, *SLOW])
def test_wherever_the_disk_fails_only_whole_files_remain(name, fails):
    calls = fails.finish(name, faulty_disk(healthy=math.inf)).calls
    moves = [number for number, called in enumerate(calls) if called == "replace"]
    for place_of_fault in range(len(calls)) if THOROUGH else sorted({0, moves[0], moves[-1]}):
        number = list(FAULTS)[place_of_fault % len(FAULTS)]
        left = fails(name, faulty_disk(place_of_fault, number), FAULTS[number])
        assert len(left) < len(fails.whole) or place_of_fault > moves[-1]


@pytest.mark.parametrize("name", [*QUICK, *SLOW, pytest.param("predict", marks=pytest.mark.slow)])
def test_wherever_a_folder_refuses_what_is_new_only_whole_files_remain(name, fails, tmp_path):
    out = tmp_path / "out"
    changes = fails.finish(name, faulty_folder(out, math.inf)).changes
    assert {"open", "os.rename"} <= set(changes)
    for place_of_fault in range(len(changes)) if THOROUGH else {0, len(changes) // 2, len(changes) - 1}:
        number = list(FAULTS)[place_of_fault % len(FAULTS)]
        left = fails(name, faulty_folder(out, place_of_fault, number), FAULTS[number])
        assert len(left) < len(fails.whole)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("predict", 1500), ("tile", 1500)),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("explain", 5000), ("pt2", 100_000))),
    ],
)
def test_a_limit_on_the_size_of_files_is_met_by_every_library_that_writes(name, size, commands, tmp_path, call):
    module, arguments = commands[name]
    with largest_file(size):
        code, _, error = call(module, *arguments, "--out", place(tmp_path, name), "--quiet")
    assert code == 1
    assert error.startswith(f"error: {tmp_path}/out")
    assert error.endswith(" cannot be written: File too large\n")
    assert all(len(content) <= size for content in written(tmp_path).values())
    assert not [file for file in written(tmp_path) if file.endswith((".jpg", ".mp4", ".png", ".pt2"))]


def test_memory_that_is_refused_is_one_error(commands, tmp_path, call, monkeypatch):
    def refuse(*_):
        torch.empty(2**60)

    module, arguments = commands["evaluate"]
    monkeypatch.setattr(evaluate_command, "detect", refuse)
    code, _, error = call(module, *arguments, "--out", tmp_path / "out")
    assert (code, error) == (1, "error: the machine has too little memory: lower data.batch_size or data.workers\n")
