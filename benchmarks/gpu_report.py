"""Table of GPUs: which of the figures that slices measure are there, and which are owed."""

import json
from typing import NamedTuple

from benchmarks.frozen import AS_TRAINED, IN_CONVOLUTION, LAYERS, PADDED
from benchmarks.recording import RESULTS, caption

OWED = "owed"
GPUS = ("NVIDIA H100 80GB HBM3", "NVIDIA H200")  # in the table even if nothing was measured on them
LOSS = {"batch": 16, "dtype": "bfloat16", "method": "triton"}
STEP = {"config": "r50_1x", "images": 16}


class Figure(NamedTuple):
    """A figure: the slice that measures it, the folder of its results, its row there, and the field with its unit."""

    name: str
    slice: str
    folder: str
    row: dict
    field: str
    unit: str
    important: bool = False  # for the README

    def of(self, results: dict) -> str:
        """Return the figure, or why it is not there."""
        for row in results["rows"]:
            if self.row.items() <= {name: value for name, value in row.items() if name in self.row}.items():
                if self.field not in row:
                    return row.get("skipped", OWED)
                return f"{row[self.field]:g} {self.unit}" + ("\\*" if "note" in results else "")
        return OWED


def _loss(name: str, important: bool = False, **row) -> Figure:
    return Figure(f"loss and gradient, {name}", "kernels", "", LOSS | row, "ms", "ms", important)


def _case(name: str) -> Figure:
    return Figure(f"loss and gradient, {name}", "kernels", "loss_cases", {"case": name}, "ms", "ms")


def _step(name: str, slice_name: str, important: bool = False, **row) -> Figure:
    return Figure(f"training, {name}", slice_name, "train_step", STEP | row, "images_s", "images/s", important)


def _frozen(layer: str, way: str) -> Figure:
    return Figure(f"frozen {layer}, {way}", "more", "frozen", {"layer": layer, "way": way}, "ms", "ms")


def _detect(name: str, **row) -> Figure:
    return Figure(f"inference, {name}", "more", "predict", row, "images_s", "images/s")


FIGURES = (
    _loss("bfloat16, 7 boxes an image", True, boxes=7),
    _loss("bfloat16, 100 boxes", boxes=100),
    _loss("bfloat16, 1000 boxes", True, boxes=1000),
    _loss("bfloat16, 5000 boxes", boxes=5000),
    _loss("float32, 7 boxes", True, boxes=7, dtype="float32"),
    _case("logits of mean -3"),
    _case("logits of mean -7"),
    _case("128 images of 640x640, 60 classes, 75,357 small boxes"),
    Figure("host, an eager call", "kernels", "", LOSS | {"boxes": 7}, "host_ms", "ms"),
    _loss("our PyTorch form, 7 boxes", method="eager", boxes=7),
    _loss("our PyTorch form, 1000 boxes", method="eager", boxes=1000)._replace(slice="more"),
    _loss("the same, compiled", method="compiled", boxes=7),
    _loss("torchvision's FCOS, 7 boxes", True, method="fcos", boxes=7),
    _loss("released algorithm, 7 boxes", True, method="released", boxes=7),
    _step("ours, compiled", "steps", True, method="compiled"),
    Figure(
        "copies to another layout, ours, compiled",
        "steps",
        "train_step",
        STEP | {"method": "compiled"},
        "direct_copies",
        "a step",
    ),
    _step("ours, eager", "steps", True, method="triton"),
    _step("torchvision's FCOS, eager", "steps", True, method="torchvision"),
    _step("ours, eager, released algorithm", "steps", True, method="released"),
    _step("torchvision's FCOS, compiled", "more", method="torchvision compiled"),
    _step("ours, compiled, box refinement", "more", method="compiled", config="r50_refine_1x"),
    _step("ours, compiled, 960x1344", "more", method="compiled", config="r50_refine_ms_2x"),
    _step("ours, compiled, convolutions by trial", "more", method="tried convolutions"),
    _step("ours, compiled, 2 images", "more", method="compiled", images=2),
    _step("ours, in CUDA graphs, 2 images", "more", method="CUDA graphs", images=2),
    _step("ours, eager, 2 images", "more", method="triton", images=2),
    *(_frozen("stem", way) for way in (AS_TRAINED, IN_CONVOLUTION, *PADDED)),
    *(_frozen(layer, way) for layer in list(LAYERS)[1:] for way in (AS_TRAINED, IN_CONVOLUTION)),
    _detect("ours, compiled, 16 images", method="compiled", batch=16),
    _detect("ours, compiled, 1 image", method="compiled", batch=1),
    _detect("torchvision's FCOS, 16 images", method="torchvision", batch=16),
)


def gpu_table(important: bool = False) -> str:
    """Return a table with a line for each figure, or only for the important ones, and a column for each GPU."""
    files = [path for folder in sorted({figure.folder for figure in FIGURES}) for path in _files(folder)]
    found = {(path.parent.name, results["machine"]["name"]): results for path, results in files}
    names = list(dict.fromkeys([*GPUS, *(name for _, name in found)]))
    if important:
        names = [name for name in names if any(gpu == name for _, gpu in found)]
    lines = [f"| figure | `make` | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for figure in FIGURES:
        if figure.important or not important:
            all_results = [found.get((figure.folder or RESULTS.name, name)) for name in names]
            cells = [OWED if results is None else figure.of(results) for results in all_results]
            lines.append(f"| {figure.name} | `gpu-{figure.slice}` | {' | '.join(cells)} |")
    heads = dict.fromkeys(_head(results) for (_, name), results in found.items() if name in names)
    return "\n".join([*lines, "", *heads])


def _files(folder: str) -> list:
    paths = sorted((RESULTS / folder).glob("*.json"))
    files = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    return [(path, results) for path, results in files if results["machine"]["device"] == "cuda"]


def _head(results: dict) -> str:
    text = caption({name: value for name, value in results.items() if name not in ("copy_gb_s", "note")})
    return f"{text}. \\*: {results['note']}." if "note" in results else f"{text}."
