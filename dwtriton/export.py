"""`python -m dwtriton.export`: a checkpoint's network as one torch.export or ONNX file that runs without dwtriton.

The network in the file maps images to decoded candidates. NMS (`dwtriton.model.postprocess.select`) is left to the
caller, because its result has no fixed shape.
"""

import argparse
import json
import math
import re
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from dwtriton.checkpoints.checkpoint import Checkpoint
from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.console.terminal import printable
from dwtriton.core.errors import RunError, UserError
from dwtriton.core.files import CheckedFile, check_new_file, write_file
from dwtriton.core.points import level_points, pyramid_strides
from dwtriton.data.buckets import padded_size
from dwtriton.inference.ready import load_detector
from dwtriton.model.detector import SIZE_DIVISOR
from dwtriton.model.pixels import PixelDetector
from dwtriton.model.postprocess import Candidates, best_candidates, class_scores

SCORE_TOLERANCE = 5e-5
BOX_TOLERANCE = 1e-4  # of the longer side of the image
MIN_DYNAMIC_SIZE = 5  # times 32 pixels: from there on P7 has more than one row and column
ONNX_OPSET = 20
METADATA_FILE = "metadata.json"  # in a .pt2 file
OUTPUTS = ("boxes", "scores", "labels")

EXAMPLES = """\
  python -m dwtriton.export --weights runs/shapes-1/best.pt --out shapes.pt2
  python -m dwtriton.export --weights best.pt --size 640x640 --out detector.onnx
  python -m dwtriton.export --weights best.pt --dynamic-size --out detector.pt2"""


class DisagreementError(RunError):
    """A file does not compute what the detector does."""


class ExportedDetector(nn.Module):
    """The exported part of a detector, from decoded images to the best candidates; it takes the network over."""

    def __init__(self, network: PixelDetector) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.contiguous_format).eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map images to boxes [B, K, 4] xyxy in pixels, not clipped, scores [B, K] and labels [B, K] int64.

        images float32 [B, 3, H, W], RGB in 0..255; padding holds the mean, which becomes 0 in the network.
        """
        return tuple(self.network.candidates(images))


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.export", "Write a network to a file, checked against the original.", EXAMPLES)
    cli.add_options(parser, "--weights")
    cli.add_options(parser, "--out", help="file to write: .pt2 (torch.export) or .onnx")
    cli.add_options(parser, "--size")
    parser.add_argument("--dynamic-size", action="store_true", help="accept any image size from 160x160 up; .pt2 only")
    cli.add_options(parser, "--force", "--set")
    return parser


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise UserError for options that contradict each other, before any work."""
    out = arguments.out
    if out.suffix not in (".pt2", ".onnx"):
        raise UserError(f"--out {out} must end in .pt2 (torch.export) or .onnx")
    if printable(str(out)) != str(out):
        raise UserError(f"PyTorch and ONNX Runtime cannot write to {out}, whose name is not plain text: choose another")
    if out.suffix == ".onnx":
        if arguments.dynamic_size:
            raise UserError("--dynamic-size is for .pt2 files; an ONNX file takes images of one size: give --size")
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
        if missing:
            raise UserError(f"ONNX files need {', '.join(missing)}: pip install 'dwtriton[onnx]'")
    if arguments.dynamic_size and arguments.size:
        raise UserError("give --size or --dynamic-size, not both")
    check_new_file(out, arguments.force)


def describe(checkpoint: Checkpoint, size: tuple[int, int] | None) -> dict[str, Any]:
    """Return the metadata that a program needs to use the file without dwtriton; a dynamic `size` is None."""
    cfg = checkpoint.config
    return {
        "class_names": checkpoint.labels,
        "category_ids": checkpoint.category_ids,
        "size": size,
        "size_divisor": SIZE_DIVISOR,
        **cfg.data.model_dump(include={"mean", "std"}),
        "strides": pyramid_strides(cfg.head.finest_stride),
        **cfg.inference.model_dump(exclude={"candidates_per_level", "compile"}),
        "iteration": checkpoint.iteration,
    }


@torch.no_grad()
def export_program(model: ExportedDetector, size: tuple[int, int], dynamic_size: bool = False) -> ExportedProgram:
    """Return the graph for any number of images of `size`, or with `dynamic_size` of any size from 160x160 up."""
    dims = {0: Dim("batch", min=1)}
    if dynamic_size:
        dims |= {axis: SIZE_DIVISOR * Dim(f"side{axis}", min=MIN_DYNAMIC_SIZE) for axis in (2, 3)}
    images = torch.zeros(2, 3, *size)  # a batch of one would specialise the graph for one
    return torch.export.export(model, (images,), dynamic_shapes={"images": dims})


def write_pt2(program: ExportedProgram, metadata: dict[str, Any], file: CheckedFile) -> None:
    """Write a torch.export file."""
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(metadata)})


def read_pt2(file: Path) -> nn.Module:
    """Return a function that runs a torch.export file."""
    with warnings.catch_warnings(action="ignore"):  # of read-only memory, to which nothing is written
        return torch.export.load(file).module()


def write_onnx(program: ExportedProgram, metadata: dict[str, Any], file: CheckedFile) -> None:
    """Write an ONNX file of standard operators."""
    names = {"input_names": ["images"], "output_names": OUTPUTS}
    with warnings.catch_warnings(action="ignore"):  # of libraries about each other
        exported = torch.onnx.export(program, **names, opset_version=ONNX_OPSET, verbose=False)
    _name_batch(exported.model)
    exported.model.metadata_props.update({name: json.dumps(value) for name, value in metadata.items()})
    file.write(exported.model_proto.SerializeToString())


def read_onnx(file: Path) -> Callable[[Tensor], list[Tensor]]:
    """Return a function that runs an ONNX file in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(array) for array in session.run(None, {"images": images.numpy()})]


@torch.no_grad()
def disagreement(found: Candidates, model: ExportedDetector, images: Tensor) -> str | None:
    """Describe how the candidates that a file finds in images differ from the detector's; None if they agree.

    Scores must be the best of the detector, and every candidate a box, score and label that the detector has at some
    point: candidates of nearly equal scores may swap.
    """
    maps, detector = model.network.head_outputs(images), model.network.detector
    count, score = detector.inference_cfg.candidates_per_level, detector.score
    expected = best_candidates(*maps, detector.strides, count, score)
    for name, own, other in zip(OUTPUTS, found, expected):
        if (own.shape, own.dtype) != (other.shape, other.dtype):
            return f"{name} are {own.dtype} {tuple(own.shape)}, not {other.dtype} {tuple(other.shape)}"
    worst = (found.scores - expected.scores).abs().max()
    if not worst <= SCORE_TOLERANCE:
        return f"scores differ by up to {worst:.2g}"
    if found.labels.min() < 0 or found.labels.max() >= maps[0][0].shape[1]:
        return "labels are out of range"
    tolerance = BOX_TOLERANCE * max(images.shape[2:])
    image = torch.arange(len(images))[:, None]
    begin = 0
    for classes, distances, objectness, stride in zip(*maps, detector.strides):
        points = level_points(*classes.shape[2:], stride)  # [P, 2]
        left_top, right_bottom = distances.flatten(2).mT.chunk(2, -1)  # [B, P, 2]
        all_boxes = torch.cat([points - left_top, points + right_bottom], -1)  # [B, P, 4]
        all_scores = class_scores(classes, objectness, score).flatten(2)  # [B, C, P]
        end = begin + min(count, all_scores[0].numel())
        boxes, scores, labels = (values[:, begin:end] for values in found)  # [B, K, ...]
        near = torch.cdist(boxes, all_boxes, p=math.inf) <= tolerance  # [B, K, P]
        equal = (all_scores[image, labels] - scores[..., None]).abs() <= SCORE_TOLERANCE  # [B, K, P]
        wrong = ~(near & equal).any(2)
        if wrong.any():
            return f"{wrong.sum()} of {wrong.numel()} candidates of stride {stride} are none of the detector's"
        begin = end
    return None


def _name_batch(model: Any) -> None:
    """Call the batch's dimension "batch" wherever it stands, instead of by a symbol of torch.export such as s34."""
    symbol = re.compile(rf"\b{re.escape(str(model.graph.inputs[0].shape[0]))}\b")
    for value in [*model.graph.inputs, *(value for node in model.graph.all_nodes() for value in node.outputs)]:
        for axis, size in enumerate(value.shape or ()):
            if symbol.search(str(size)):
                value.shape[axis] = symbol.sub("batch", str(size))


def main() -> int:
    arguments = build_parser().parse_args()
    console, out = cli.open_console(arguments), arguments.out
    check_arguments(arguments)
    size = arguments.size and cli.read_size(arguments.size, SIZE_DIVISOR)
    ready = load_detector(arguments.weights, device="cpu", overrides=arguments.set)
    inference = ready.config.inference
    size = size or padded_size([(inference.short_side, inference.long_side)], SIZE_DIVISOR)
    if arguments.dynamic_size:
        size = tuple(max(side, MIN_DYNAMIC_SIZE * SIZE_DIVISOR) for side in size)
    metadata = describe(ready.checkpoint, None if arguments.dynamic_size else size)
    model = ExportedDetector(ready.network)

    print_line(console, f"exporting for images of {'any size' if arguments.dynamic_size else f'{size[0]}x{size[1]}'}")
    program = export_program(model, size, arguments.dynamic_size)
    sizes = [size, size[::-1]] if arguments.dynamic_size else [size]

    write, read = (write_onnx, read_onnx) if out.suffix == ".onnx" else (write_pt2, read_pt2)

    def check(file: Path) -> None:
        """Raise DisagreementError unless the file computes what the detector does."""
        run = read(file)
        print_line(console, "comparing what the file computes with the detector")
        for batch, image_size in enumerate(sizes, 1):
            images = 255 * torch.rand(batch, 3, *image_size, generator=torch.Generator().manual_seed(0))
            with torch.no_grad():
                found = Candidates(*run(images))
            if problem := disagreement(found, model, images):
                problem = f"the exported network differs from the detector: {problem}"
                raise DisagreementError(f"{problem}. {out} was not written")

    write_file(out, lambda file: write(program, metadata, file), check)
    print_line(console, f"{out}: {out.stat().st_size / 1e6:.1f} MB, agrees with the detector")
    cli.print_result(arguments, {"file": str(out), **metadata})
    return 0


if __name__ == "__main__":
    cli.run(main)
