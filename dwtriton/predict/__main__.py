"""`python -m dwtriton.predict`: detect in images and videos; pictures and COCO JSON out."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.core.errors import UserError
from dwtriton.core.files import make_folder
from dwtriton.inference.ready import load_detector
from dwtriton.inference.tiles import Tiling
from dwtriton.predict.formats import FORMATS, write_csv, write_yolo
from dwtriton.predict.inputs import find_inputs, picture_names
from dwtriton.predict.predictor import Predictor
from dwtriton.predict.video import import_av
from dwtriton.predict.writer import DetectionsWriter

EXAMPLES = """\
  python -m dwtriton.predict --weights runs/shapes-1/last.pt image.jpg photos/ "more/*.png"
  python -m dwtriton.predict --weights best.pt street.mp4 --threshold 0.4 --out street
  python -m dwtriton.predict --weights best.pt photos/ --no-pictures --json
  python -m dwtriton.predict --weights best.pt photos/ --format yolo --format csv
  python -m dwtriton.predict --weights best.pt aerial.tif --tile 640 --overlap 0.2"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.predict", "Detect objects in images and videos.", EXAMPLES)
    parser.add_argument("inputs", metavar="INPUT", nargs="+", help='image, video, folder, or pattern such as "a/*.jpg"')
    cli.add_options(parser, "--weights")
    where = "folder for pictures and detections.json (default: %(default)s)"
    cli.add_options(parser, "--out", metavar="DIR", required=False, default=Path("predictions"), help=where)
    which = "keep boxes with a higher score (default: %(default)s)"
    parser.add_argument("--threshold", metavar="SCORE", type=float, default=0.3, help=which)
    parser.add_argument("--batch", metavar="N", type=int, default=8, help="images in a batch (default: %(default)s)")
    which = "cut images into tiles of this many pixels a side, for small objects in large images"
    parser.add_argument("--tile", metavar="SIZE", type=int, help=which)
    which = "least share of a tile's side that it has in common with its neighbour (default: %(default)s)"
    parser.add_argument("--overlap", metavar="SHARE", type=float, default=Tiling._field_defaults["overlap"], help=which)
    which = "write detections in this format too, beside COCO's detections.json; repeatable"
    parser.add_argument("--format", choices=FORMATS, action="append", default=[], help=which)
    parser.add_argument("--no-pictures", action="store_true", help="write the detections alone")
    cli.add_options(parser, "--force", help="write into --out even if it is not empty")
    cli.add_options(parser, "--set")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    if not 0 <= arguments.threshold <= 1:
        raise UserError(f"--threshold is a score from 0 to 1, not {arguments.threshold}")
    if arguments.batch < 1:
        raise UserError(f"--batch must be at least 1, not {arguments.batch}")
    tiling = Tiling(arguments.tile, arguments.overlap) if arguments.tile is not None else None
    if tiling:
        tiling.check()
    images, videos = find_inputs(arguments.inputs)
    if videos and tiling:
        raise UserError(f"--tile is for images, and {videos[0]} is a video")
    if videos:
        import_av()
    check_out(arguments.out, arguments.force, [*images, *videos])
    overrides = [f"inference.score_threshold={arguments.threshold}", *arguments.set]
    ready = load_detector(arguments.weights, overrides=overrides)
    if not ready.checkpoint.class_names:
        print_line(console, f"{arguments.weights} has no class names; category ids are shown instead", "yellow")
    names = picture_names([*images, *videos])
    make_folder(arguments.out)
    with DetectionsWriter(arguments.out) as writer:
        draw_to = {} if arguments.no_pictures else {path: arguments.out / name for path, name in names.items()}
        predictor = Predictor(ready, writer, draw_to, arguments.batch, console, tiling)
        try:
            predictor.predict_images(images)
            for video in videos:
                predictor.predict_video(video)
        except torch.cuda.OutOfMemoryError:
            problem = f"the GPU has too little memory for {arguments.batch} images at a time; lower --batch"
            raise UserError(problem) from None
        except KeyboardInterrupt:
            print_line(console, "interrupted; what was found so far is kept", "yellow")
            raise
        finally:
            finish(predictor, arguments, console, names)
    counts = predictor.counts()
    if not counts["images"] + counts["frames"]:
        raise UserError(f"none of {len(images) + len(videos)} files could be used; the first: {predictor.skipped[0]}")
    cli.print_result(arguments, {"out": str(arguments.out), **counts})
    return 0


def check_out(out: Path, force: bool, inputs: Sequence[Path]) -> None:
    """Raise UserError if something may be replaced that must not be, inputs above all."""
    for path in inputs:
        if path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{path} lies in --out {out}, where pictures of the same name may go: choose another --out")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out} is not empty: add --force to write into it all the same, or choose another --out")


def finish(predictor: Predictor, arguments: argparse.Namespace, console: Console, names: dict[Path, str]) -> None:
    """Report what was found and what was not read, and write the detections if anything was."""
    counts, ready = predictor.counts(), predictor.ready
    for kind in ("skipped", "incomplete", "doubtful"):
        for line in counts[kind]:
            print_line(console, f"{kind}: {line}", "yellow")
    line = "{images} images and {frames} video frames: {detections} detections".format(**counts)
    print_line(console, f"{line}; {len(predictor.skipped)} files skipped")
    if counts["images"] + counts["frames"]:
        info = {
            "description": f"detections of {arguments.weights}",
            "score_threshold": ready.config.inference.score_threshold,
            "skipped": predictor.skipped,
            "incomplete": predictor.incomplete,
            "doubtful": predictor.doubtful,
        }
        categories = [{"id": id_, "name": name} for id_, name in zip(ready.category_ids, ready.class_names)]
        predictor.writer.write(arguments.out / "detections.json", info, categories)
        print_line(console, f"detections: {arguments.out / 'detections.json'}")
        if "yolo" in arguments.format:
            stems = {str(path): Path(name).stem for path, name in names.items()}
            write_yolo(arguments.out / "labels", predictor.writer.records(), categories, stems)
            print_line(console, f"detections: {arguments.out / 'labels'}")
        if "csv" in arguments.format:
            class_names = dict(zip(ready.category_ids, ready.class_names))
            write_csv(arguments.out / "detections.csv", predictor.writer.records(), class_names)
            print_line(console, f"detections: {arguments.out / 'detections.csv'}")


if __name__ == "__main__":
    cli.run(main)
