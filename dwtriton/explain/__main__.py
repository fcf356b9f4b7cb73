"""`python -m dwtriton.explain`: the weights of an image's objects, or their points by other assigners, as pictures."""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console

from dwtriton.checkpoints.checkpoint import check_classes
from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.console.progress import progress
from dwtriton.core.errors import UserError
from dwtriton.core.files import check_absent, fitting_name, make_folder, write_file
from dwtriton.data.coco import CocoDataset, Sample
from dwtriton.data.prepare import prepare_validation
from dwtriton.explain.comparison import ASSIGNERS, compare_sample
from dwtriton.explain.comparison_figure import draw_comparison
from dwtriton.explain.explanation import Explanation, explain, objects_of
from dwtriton.explain.figures import MAX_OBJECTS, check_box, describe_strongest, draw, draw_strip
from dwtriton.inference.ready import ReadyDetector, load_detector

FORMATS = ("png", "pdf", "svg")
DPI = 200  # of PNG files, and of the images in PDF and SVG files
EXAMPLES = """\
  python -m dwtriton.explain --weights runs/shapes-1/last.pt                      all objects of the first image
  python -m dwtriton.explain --weights best.pt --data ~/coco --image 000000000139.jpg --object 2 --format pdf
  python -m dwtriton.explain --weights runs/shapes-1/epoch-*.pt --object 0        how an object's weights changed
  python -m dwtriton.explain --weights best.pt --object 0 --out object.svg        into one file
  python -m dwtriton.explain --weights best.pt --compare dual_weight atss tal     positive points, side by side"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.explain", "Draw the positive and negative weights of objects.", EXAMPLES)
    which = "one checkpoint, or several (see train.keep_every) to show how an object's weights changed"
    cli.add_options(parser, "--weights", nargs="+", help=which)
    cli.add_options(parser, "--data")
    assigners = parser.add_mutually_exclusive_group()
    assigners.add_argument(
        "--assigner", metavar="NAME", choices=ASSIGNERS, help=f"draw the positive points by it: {', '.join(ASSIGNERS)}"
    )
    assigners.add_argument(
        "--compare", metavar="NAME", choices=ASSIGNERS, nargs="+", help="the same, a column for each"
    )
    parser.add_argument("--image", metavar="NAME|ID", help="validation image (default: the first with objects)")
    parser.add_argument("--object", metavar="N", type=int, help="number, from 0, of the only object to draw")
    where = "folder for the picture, or a .png, .pdf or .svg file (default: %(default)s)"
    cli.add_options(parser, "--out", metavar="DIR|FILE", required=False, default=Path("explanation"), help=where)
    parser.add_argument("--format", choices=FORMATS, help="of a picture in a folder (default: png)")
    cli.add_options(parser, "--force", "--set")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    assigners = list(dict.fromkeys(arguments.compare or filter(None, [arguments.assigner])))
    if len(arguments.weights) > 1 and assigners:
        raise UserError("assigners are compared on one checkpoint: give one --weights")
    if len(arguments.weights) > 1 and arguments.object is None:
        raise UserError("several checkpoints show how one object's weights changed: choose it with --object N")
    file = picture_file(arguments.out, arguments.format)
    first = load_detector(arguments.weights[0], overrides=arguments.set, data_root=arguments.data)
    dataset = prepare_validation(first.config, console)
    check_classes(arguments.weights[0], first.checkpoint, dataset.class_names)
    sample = dataset[find_image(dataset, arguments.image)]
    shows = "" if arguments.object is None else f"-object-{arguments.object}"
    shows += "-strip" if len(arguments.weights) > 1 else "".join(f"-{assigner}" for assigner in assigners)
    name = fitting_name(Path(sample.path).stem, f"{shows}.{arguments.format or FORMATS[0]}")
    picture = file or arguments.out / name
    check_absent([picture], arguments.force)
    count = int(objects_of(sample).sum())
    if not count:
        raise UserError(f"{sample.path} has no objects: choose another image with --image")
    if arguments.object is not None:
        check_box(count, arguments.object)
    make_folder(picture.parent)
    height, width = sample.image.shape[1:]
    print_line(console, f"{sample.path}, {width} x {height} pixels in the network")
    draw_picture = draw_assigners if assigners else draw_weights
    result = draw_picture(arguments, console, dataset, sample, first, picture)
    image = {"picture": str(picture), "image": sample.path, "image_id": sample.image_id}
    cli.print_result(arguments, image | result)
    return 0


def draw_weights(
    arguments: argparse.Namespace,
    console: Console,
    dataset: CocoDataset,
    sample: Sample,
    first: ReadyDetector,
    picture: Path,
) -> dict[str, Any]:
    """Draw and describe the weights of Dual Weighting by each checkpoint; return their figures."""
    settings = {"overrides": arguments.set, "data_root": arguments.data}
    steps = []
    with progress(console, "checkpoints", len(arguments.weights)) as advance:
        for weights in arguments.weights:
            ready = first if weights == arguments.weights[0] else load_detector(weights, **settings)
            check_classes(weights, ready.checkpoint, dataset.class_names)
            if not ready.checkpoint.class_names:
                print_line(console, f"{weights} has no class names; category ids are shown", "yellow")
            steps.append((ready.checkpoint.iteration, weights, explain(ready, sample)))
            advance()
    steps.sort(key=lambda step: step[0])  # a shell sorts epoch-10 before epoch-9
    if len(steps) > 1:
        titled = [(f"{weights.stem}\niteration {iteration}", explained) for iteration, weights, explained in steps]
        save(draw_strip(titled, arguments.object), picture)
    else:
        save(draw(steps[0][2], arguments.object), picture)

    checkpoints = []
    count = len(steps[0][2].boxes)
    for iteration, weights, explained in steps:
        print_line(console, f"{weights}, iteration {iteration}")
        numbers = range(count) if arguments.object is None else [arguments.object]
        objects = [describe(explained, number, console) for number in numbers]
        checkpoints.append({"weights": str(weights), "iteration": iteration, "objects": objects})
    print_line(console, f"picture: {picture}")
    if arguments.object is None and count > MAX_OBJECTS:
        print_line(console, f"it shows the {MAX_OBJECTS} largest objects; --object N draws any")
    return {"checkpoints": checkpoints}


def draw_assigners(
    arguments: argparse.Namespace,
    console: Console,
    dataset: CocoDataset,
    sample: Sample,
    first: ReadyDetector,
    picture: Path,
) -> dict[str, Any]:
    """Draw and describe the positive points by each assigner; return their figures."""
    names = list(dict.fromkeys(arguments.compare or [arguments.assigner]))
    compared = compare_sample(first, sample, names)
    save(draw_comparison(compared, arguments.object), picture)
    objects = []
    for number in range(len(compared.boxes)) if arguments.object is None else [arguments.object]:
        print_line(console, f"  object {compared.title(number)}")
        found = {name: positives.summary(number) for name, positives in compared.positives.items()}
        for name, figures in found.items():
            like = f"as concentrated as {figures['effective']:.1f} equal ones"
            print_line(console, f"    {name}: {figures['points']} positive points, {like}")
        objects.append({"object": number, "assigners": found})
    print_line(console, f"picture: {picture}")
    return {"objects": objects}


def save(figure: Figure, picture: Path) -> None:
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # text in a PDF stays text, in fonts that journals accept
        write_file(picture, lambda file: figure.savefig(file, format=picture.suffix[1:].lower(), dpi=DPI))


def find_image(dataset: CocoDataset, wanted: str | None) -> int:
    """Return the index of the image with this id or end of its path; by default of the first one with objects.

    Raises UserError if the split has no such image.
    """
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


def picture_file(out: Path, format: str | None) -> Path | None:
    """Return `out` if it names a file, and None if it names a folder.

    Raises UserError if the suffix of a file contradicts `format`, or is that of another kind of picture.
    """
    suffix = out.suffix.lower()
    if out.is_dir() or suffix not in {".svg", *Image.registered_extensions()}:
        return None
    if suffix[1:] not in FORMATS:
        raise UserError(f"--out {out} is no folder, and pictures are written as .png, .pdf or .svg")
    if format not in (None, suffix[1:]):
        raise UserError(f"--out {out} and --format {format} contradict each other: leave one of them out")
    return out


def describe(explained: Explanation, number: int, console: Console) -> dict[str, Any]:
    """Print the figures of an object, and return them for JSON."""
    found = explained.summary(number)
    box = ", ".join(f"{side:.0f}" for side in found["box"])
    figures = f"box ({box}), {found['points']} points, sum of positive weights {found['positive_sum']:.2f}"
    print_line(console, f"  object {explained.title(number)}: {figures}")
    print_line(console, f"    {describe_strongest(explained, number)}")
    return found


if __name__ == "__main__":
    cli.run(main)
