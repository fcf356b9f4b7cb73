"""`python -m dwtriton.explain`: the positive and negative weights of an image's objects, as pictures."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from dwtriton.checkpoints.checkpoint import Checkpoint, check_classes, load_detector
from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.console.progress import progress
from dwtriton.core.errors import UserError
from dwtriton.core.files import check_absent, make_folder, write_atomically
from dwtriton.core.points import STRIDES
from dwtriton.data.batching import collate
from dwtriton.data.coco import CocoDataset, Sample
from dwtriton.data.prepare import prepare_validation
from dwtriton.explain.maps import Explanation
from dwtriton.explain.pictures import SHOWN, check_box, describe_strongest, draw_object, draw_objects, draw_strip
from dwtriton.losses.dual_weight import DualWeightAssigner
from dwtriton.model.detector import DualWeightDetector
from dwtriton.model.pixels import PixelDetector
from dwtriton.reference.dense_weights import DualWeights

__all__ = ["Explanation", "draw", "draw_strip", "explain"]

FORMATS = ("png", "pdf", "svg")
DPI = 200  # of a PNG, and of the images in a PDF or SVG
EXAMPLES = """\
  python -m dwtriton.explain --weights runs/shapes-1/last.pt                      all objects of the first image
  python -m dwtriton.explain --weights best.pt --data ~/coco --image 000000000139.jpg --object 2 --format pdf
  python -m dwtriton.explain --weights runs/shapes-1/epoch-*.pt --object 0        how an object's weights changed"""


def draw(explanation: Explanation, box: int | None = None) -> Figure:
    """The weights of one box of an image, level by level; without `box` those of all its boxes, side by side.

    Raises UserError for a box that is not there, and for an image without boxes.
    """
    return draw_objects(explanation) if box is None else draw_object(explanation, box)


def explain(detector: DualWeightDetector, checkpoint: Checkpoint, sample: Sample) -> Explanation:
    """What a detector, in evaluation mode and on its device, and the label assignment make of an image of a data set.

    Detector and checkpoint are those of `load_detector`. Raises UserError for an image that could not be read.
    """
    objects = real_objects(sample)
    cfg = checkpoint.config
    device = next(detector.parameters()).device
    batch = collate([sample], cfg.head.num_classes, cfg.data.size_divisor)
    with torch.no_grad():
        outputs = PixelDetector(detector, cfg.data).head_outputs(batch.images.to(device), batch.image_sizes)
    (weights,) = DualWeightAssigner(STRIDES, cfg.loss.soft_prior)(*outputs, batch.targets)
    return Explanation(
        image=sample.image.permute(1, 2, 0).numpy(),
        weights=DualWeights(*(values.cpu() for values in weights)),
        boxes=sample.target["boxes"][objects],
        labels=sample.target["labels"][objects],
        level_sizes=[tuple(level.shape[2:]) for level in outputs[0]],
        names=checkpoint.labels,
    )


def real_objects(sample: Sample) -> Tensor:
    """Which boxes of a sample are objects and not crowds, (G,) bool. Raises UserError if its image is unreadable."""
    if sample.image is None:
        raise UserError(f"the image cannot be used: {sample.broken[0]}")
    crowd = sample.target.get("iscrowd", torch.zeros_like(sample.target["labels"]))
    return ~crowd.bool()


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.explain", "Draw the positive and negative weights of objects.", EXAMPLES)
    which = "one checkpoint, or several (see train.keep_every) to show how an object's weights changed"
    cli.add_option(parser, "--weights", nargs="+", help=which)
    cli.add_option(parser, "--data")
    parser.add_argument("--image", metavar="NAME|ID", help="of the validation split (default: the first with objects)")
    parser.add_argument("--object", metavar="N", type=int, help="number, from 0, of the only object to draw")
    where = "folder for the picture (default: %(default)s)"
    cli.add_option(parser, "--out", metavar="DIR", required=False, default=Path("explanation"), help=where)
    parser.add_argument("--format", choices=FORMATS, default="png", help="of the picture (default: %(default)s)")
    cli.add_option(parser, "--force")
    cli.add_option(parser, "--set")
    return parser


class Step(NamedTuple):
    """What one checkpoint makes of the image."""

    weights: Path
    iteration: int
    explained: Explanation


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    if len(arguments.weights) > 1 and arguments.object is None:
        raise UserError("several checkpoints show how one object's weights changed: choose it with --object N")
    first = load_detector(arguments.weights[0], arguments.set, arguments.data)
    dataset = prepare_validation(first[1].config, console)
    check_classes(arguments.weights[0], first[1], dataset.class_names)
    sample = dataset[find_image(dataset, arguments.image)]
    picture = arguments.out / picture_name(sample.path, arguments)
    check_absent([picture], arguments.force)
    numbers = choose_objects(sample, arguments.object)
    make_folder(arguments.out)

    steps = []
    with progress(console, "checkpoints", len(arguments.weights)) as advance:
        for file in arguments.weights:
            loaded = first if file == arguments.weights[0] else load_detector(file, arguments.set, arguments.data)
            check_classes(file, loaded[1], dataset.class_names)
            steps.append(explain_step(file, *loaded, sample, console))
            advance()
    steps.sort(key=lambda step: step.iteration)  # a shell sorts epoch-10 before epoch-9
    if len(steps) > 1:
        titles = [f"{step.weights.stem}\niteration {step.iteration}" for step in steps]
        figure = draw_strip([(title, step.explained) for title, step in zip(titles, steps)], arguments.object)
    else:
        figure = draw(steps[0].explained, arguments.object)
    write_atomically(picture, lambda path: save(figure, path))
    tell(steps, numbers, sample, console)
    print_line(console, f"picture: {picture}")
    if arguments.object is None and len(numbers) > SHOWN:
        print_line(console, f"it shows the {SHOWN} largest objects; --object N draws any")
    checkpoints = [
        {
            "weights": str(step.weights),
            "iteration": step.iteration,
            "objects": [step.explained.summary(number) for number in numbers],
        }
        for step in steps
    ]
    cli.print_result(
        arguments,
        {"picture": str(picture), "image": sample.path, "image_id": sample.image_id, "checkpoints": checkpoints},
    )
    return 0


def find_image(dataset: CocoDataset, wanted: str | None) -> int:
    """The item with this image id or whose path ends so; without one the first that has objects. Raises UserError."""
    if wanted is None:
        with_objects = (
            index
            for index, image_id in enumerate(dataset.image_ids)
            if dataset.box_count(index) and dataset.coco.getAnnIds([image_id], iscrowd=False)
        )
        return next(with_objects, 0)
    parts = Path(wanted).parts
    for index, (path, image_id) in enumerate(zip(dataset.paths, dataset.image_ids)):
        if wanted == str(image_id) or Path(path).parts[-len(parts) :] == parts:
            return index
    raise UserError(f"the validation split has no image {wanted!r}, neither as a file name nor as an id")


def picture_name(image: str, arguments: argparse.Namespace) -> str:
    """IMAGE, IMAGE-object-N or IMAGE-object-N-strip, with the suffix of the format."""
    name = Path(image).stem
    if arguments.object is not None:
        name += f"-object-{arguments.object}"
    if len(arguments.weights) > 1:
        name += "-strip"
    return f"{name}.{arguments.format}"


def choose_objects(sample: Sample, wanted: int | None) -> list[int]:
    """Numbers of the objects that are asked for. Raises UserError if the image has no such object."""
    count = int(real_objects(sample).sum())
    if not count:
        raise UserError(f"{sample.path} has no objects: choose another image with --image")
    if wanted is None:
        return list(range(count))
    check_box(count, wanted)
    return [wanted]


def explain_step(
    file: Path, detector: DualWeightDetector, checkpoint: Checkpoint, sample: Sample, console: Console
) -> Step:
    """Explain the image with one checkpoint, on the GPU if there is one."""
    if not checkpoint.class_names:
        print_line(console, f"{file} has no class names; category ids are shown", "yellow")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.to(device, memory_format=torch.channels_last)
    return Step(file, checkpoint.iteration, explain(detector, checkpoint, sample))


def tell(steps: Sequence[Step], numbers: Sequence[int], sample: Sample, console: Console) -> None:
    """Print what every checkpoint makes of the objects."""
    height, width = sample.image.shape[1:]
    print_line(console, f"{sample.path}, {width} x {height} pixels in the network")
    for step in steps:
        print_line(console, f"{step.weights}, iteration {step.iteration}")
        for number in numbers:
            summary = step.explained.summary(number)
            box = ", ".join(f"{side:.0f}" for side in summary["box"])
            what = f"box ({box}), {summary['points']} points, positive weights together {summary['positive_sum']:.2f}"
            print_line(console, f"  object {step.explained.title(number)}: {what}")
            print_line(console, f"    {describe_strongest(step.explained, number)}")


def save(figure: Figure, path: Path) -> None:
    """Write a figure; the text of a PDF stays text, in fonts that journals accept."""
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(path, dpi=DPI)


if __name__ == "__main__":
    cli.run(main)
