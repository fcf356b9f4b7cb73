"""`python -m dwtriton.data`: look through a data set in COCO format, or make one from YOLO's or Pascal VOC's layout."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dwtriton import cli
from dwtriton.cli import say
from dwtriton.data.check import Findings, check_split, draw_sheet, find_splits, training_settings
from dwtriton.data.convert import convert, read_voc, read_yolo
from dwtriton.errors import UserError
from dwtriton.files import make_folder, write_atomically

EXAMPLES = {
    "check": """\
  python -m dwtriton.data check ~/coco
  python -m dwtriton.data check my-data --out checked --json""",
    "convert-yolo": """\
  python -m dwtriton.data convert-yolo my-yolo-data --out my-data
  python -m dwtriton.data convert-yolo my-yolo-data --names classes.txt --out my-data --skip-broken""",
    "convert-voc": """\
  python -m dwtriton.data convert-voc VOCdevkit/VOC2012 --out voc2012
  python -m dwtriton.data convert-voc VOCdevkit/VOC2007 --train trainval --val test --out voc2007""",
}


def build_parser() -> argparse.ArgumentParser:
    what = "Look through a data set in COCO format, or make one from YOLO's or Pascal VOC's layout."
    parser, add = cli.command_with_actions("dwtriton.data", what, EXAMPLES)
    check = add("check", run_check, "sizes, classes, boxes and problems of a data set, with a sheet of samples")
    check.add_argument("root", metavar="DIR", type=Path, help="folder with COCO JSON files and images")
    check.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("data-check"), help="for the sheets (default: %(default)s)"
    )
    check.add_argument("--force", action="store_true", help="replace sheets that exist")
    yolo = add("convert-yolo", run_yolo, "COCO format from YOLO's layout")
    voc = add("convert-voc", run_voc, "COCO format from Pascal VOC's layout")
    for sub in (yolo, voc):
        sub.add_argument("root", metavar="DIR", type=Path, help="folder to read")
        sub.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder to write, absent or empty")
        sub.add_argument("--skip-broken", action="store_true", help="leave out broken lines and images")
    yolo.add_argument("--names", metavar="FILE", type=Path, help="classes, one a line (default: those of data.yaml)")
    voc.add_argument("--train", metavar="LIST", default="train", help="of ImageSets/Main (default: %(default)s)")
    voc.add_argument("--val", metavar="LIST", default="val", help="of ImageSets/Main (default: %(default)s)")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    return arguments.run(arguments, cli.open_console(arguments))


def run_check(arguments: argparse.Namespace, console: Console) -> int:
    """Print findings and write a sheet of samples for each split; 2 if a training would be refused."""
    splits = find_splits(arguments.root)
    sheets = {split.name: arguments.out / f"{split.name}.png" for split in splits}
    existing = [str(sheet) for sheet in sheets.values() if sheet.exists()]
    if existing and not arguments.force:
        raise UserError(f"{', '.join(existing)} already exists: add --force to replace it, or choose another --out")
    findings = [check_split(split) for split in splits]
    for found in findings:
        show(found, console)
    make_folder(arguments.out)
    for found in findings:
        if not found.fatal:
            figure = draw_sheet(found.split)
            write_atomically(sheets[found.split.name], lambda path, figure=figure: figure.savefig(path, dpi=110))
            say(console, f"samples: {sheets[found.split.name]}")
    usable = not any(found.fatal for found in findings)
    if usable:
        settings = training_settings(splits, arguments.root, len(findings[0].classes))
        sets = " ".join(f"--set {setting}" for setting in settings)
        say(console, f"train on it: python -m dwtriton.train --cfg r50_1x --data {arguments.root} {sets}")
    cli.print_result(arguments, {"usable": usable, "splits": [as_json(found) for found in findings]})
    return 0 if usable else 2


def run_yolo(arguments: argparse.Namespace, console: Console) -> int:
    return report_conversion(
        arguments, console, convert(read_yolo(arguments.root, arguments.names), arguments.out, arguments.skip_broken)
    )


def run_voc(arguments: argparse.Namespace, console: Console) -> int:
    source = read_voc(arguments.root, arguments.train, arguments.val)
    return report_conversion(arguments, console, convert(source, arguments.out, arguments.skip_broken))


def report_conversion(arguments: argparse.Namespace, console: Console, counts: dict[str, int]) -> int:
    say(console, f"{arguments.out}: {counts['images']} images, {counts['boxes']} boxes, {counts['broken']} left out")
    say(console, f"look at it: python -m dwtriton.data check {arguments.out}")
    cli.print_result(arguments, {"out": str(arguments.out), **counts})
    return 0


def show(found: Findings, console: Console) -> None:
    """The findings of a split, for people."""
    say(console, f"{found.split.name}: {found.split.annotations}, images in {found.split.images}")
    for line in found.fatal:
        say(console, f"cannot be trained on: {line}", "red")
    if found.fatal:
        return
    table = Table("what", "least", "middle", "most")
    for name, spread in (
        ("image sides, pixels", found.image_sides),
        ("boxes an image", found.boxes_per_image),
        ("box sides, pixels", found.box_sides),
    ):
        table.add_row(name, *(f"{value:g}" for value in spread))
    console.print(table)
    sizes = ", ".join(f"{share:.0%} {name}" for name, share in found.box_sizes.items())
    say(console, f"{found.images} images, {found.boxes} boxes ({sizes}), {found.crowds} of them crowd")
    classes = Table("class", "boxes")
    for name, count in found.classes.items():
        classes.add_row(name, str(count))
    console.print(classes)
    for line in found.problems.summary():
        say(console, line, "yellow")
    if not found.problems.counts:
        say(console, "no problems found")


def as_json(found: Findings) -> dict:
    """The findings as plain values."""
    examples = found.problems.examples
    values = dict(vars(found))
    values["split"] = {key: str(value) for key, value in found.split._asdict().items()}
    values["problems"] = {kind: {"count": n, "examples": examples[kind]} for kind, n in found.problems.counts.items()}
    return values


if __name__ == "__main__":
    cli.run(main)
