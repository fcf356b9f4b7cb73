"""`python -m dwtriton.data`: look through a data set in COCO format, make one from another layout, split or cut one."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dwtriton.config.load import load_config
from dwtriton.console import cli
from dwtriton.console.cli import print_line, print_text
from dwtriton.console.terminal import Terminal
from dwtriton.core.errors import UserError
from dwtriton.core.files import check_absent, make_folder
from dwtriton.core.text import first_of, listed_lines
from dwtriton.data.classes import different_categories
from dwtriton.data.formats.check import Findings, check_split, draw_sheet
from dwtriton.data.formats.check_files import PROBLEMS_FILE, is_own_file, remove_old_sheets, write_problems, write_sheet
from dwtriton.data.formats.convert import convert, counted
from dwtriton.data.formats.layouts import read_source
from dwtriton.data.formats.leaks import shared_files
from dwtriton.data.formats.split import GROUPS, split_data
from dwtriton.data.formats.splits import (
    check_command,
    choose_splits,
    find_splits,
    fit_here,
    split_command,
    tile_command,
    training_command,
)
from dwtriton.data.formats.tiles import FINEST_STRIDE, tile_data, tile_size

MAX_LINES = 10  # of the reasons for which a training refuses a split, and of JSON files that are ignored

EXAMPLES = {
    "check": """\
  python -m dwtriton.data check ~/coco
  python -m dwtriton.data check my-data --out checked --json""",
    "convert": """\
  python -m dwtriton.data convert my-yolo-data --out my-data
  python -m dwtriton.data convert coco128.yaml --out my-data --skip-broken
  python -m dwtriton.data convert my-yolo-data --names classes.txt --out my-data
  python -m dwtriton.data convert VOCdevkit/VOC2012 --out voc2012
  python -m dwtriton.data convert VOCdevkit --train VOC2007/trainval VOC2012/train --val VOC2012/val --out voc""",
    "split": """\
  python -m dwtriton.data split my-data --val 0.1 --out my-split
  python -m dwtriton.data split my-data --val 0.2 --group prefix --out my-split    frames of a video stay together""",
    "tile": "  python -m dwtriton.data tile my-data --size 640 --out my-tiles",
}


def build_parser() -> argparse.ArgumentParser:
    description = (
        "Check a data set in COCO layout, convert one from the layout of YOLO, Pascal VOC, CVAT, labelme or Label "
        "Studio, split one, or cut its images into tiles."
    )
    parser, add_action = cli.parser_with_actions("dwtriton.data", description, EXAMPLES)
    check = add_action("check", run_check, "print sizes, classes, boxes and problems; draw a sheet of samples")
    check.add_argument("root", metavar="DIR", type=Path, help="folder with COCO JSON files and images")
    where = "folder for the sheets (default: %(default)s)"
    cli.add_options(check, "--out", metavar="DIR", required=False, default=Path("data-check"), help=where)
    cli.add_options(check, "--force", "--set")
    convert = add_action("convert", run_convert, "write a data set of another layout in that of COCO")
    root = "folder of the labels; YOLO: or its data.yaml"
    convert.add_argument("root", metavar="DIR", type=Path, help=root)
    convert.add_argument("--names", metavar="FILE", type=Path, help="YOLO: classes, one a line (default: data.yaml's)")
    for split in ("train", "val"):
        lists = f"Pascal VOC: lists of ImageSets/Main, or YEAR/LIST (default: {split})"
        convert.add_argument(f"--{split}", metavar="LIST", nargs="+", help=lists)
    cli.add_options(convert, "--out", metavar="DIR", help="folder to write, absent or empty")
    cli.add_options(convert, "--force", help="replace an earlier conversion in --out")
    convert.add_argument("--skip-broken", action="store_true", help="skip broken lines and images")
    split = add_action("split", run_split, "write a data set of one split as two, to train and to validate with")
    split.add_argument("root", metavar="DIR", type=Path, help="folder with a COCO JSON file and images")
    split.add_argument("--val", metavar="SHARE", type=float, default=0.1, help="of the images (default: %(default)s)")
    together = (
        "keep images of a folder, or of a beginning of the name before its number, together (default: %(default)s)"
    )
    split.add_argument("--group", choices=list(GROUPS), default="image", help=together)
    split.add_argument("--seed", metavar="N", type=int, default=0, help="of the draw (default: %(default)s)")
    cli.add_options(split, "--out", metavar="DIR", help="folder to write, absent or empty")
    cli.add_options(split, "--force", help="replace an earlier conversion or split in --out")
    tile = add_action("tile", run_tile, "write a data set with its images cut into tiles")
    tile.add_argument("root", metavar="DIR", type=Path, help="folder with COCO JSON files and images")
    tile.add_argument(
        "--size", metavar="PIXELS", type=int, default=640, help="of a tile's sides (default: %(default)s)"
    )
    share = "of a side, that neighbours have in common at least (default: %(default)s)"
    tile.add_argument("--overlap", metavar="SHARE", type=float, default=0.2, help=share)
    cli.add_options(tile, "--out", metavar="DIR", help="folder to write, absent or empty")
    cli.add_options(tile, "--force", help="replace an earlier conversion, split or cut in --out")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    console = cli.open_console(arguments)
    return arguments.run(arguments, console, Terminal(stderr=True, quiet=console.quiet))


def run_check(arguments: argparse.Namespace, console: Console, progress_console: Console) -> int:
    """Print findings and write a sheet of samples for each split. Raises UserError if a training would refuse them."""
    root, out = arguments.root, arguments.out
    cfg = load_config("r50_1x", arguments.set).data
    splits, others = find_splits(root)
    sheets = {split.name: out / f"{split.name}.png" for split in splits}
    files = [*sheets.values(), out / PROBLEMS_FILE]
    check_absent([path for path in files if not is_own_file(path)], arguments.force)
    make_folder(out)
    remove_old_sheets(out)
    ignored = [f"ignored: {line}" for line in others]
    for line in listed_lines(ignored, MAX_LINES):
        print_line(console, line)
    train, val = choose_splits(splits)
    findings = {}
    for split in splits:
        same = split is train or different_categories(train.records.class_names, split.records.class_names)
        classes = None if same else list(train.records.class_names.values())
        findings[split.name] = found = check_split(split, progress_console, split is train, cfg, classes)
        show_findings(found, console)
        if not found.fatal:
            write_sheet(draw_sheet(found), sheets[split.name])
            print_line(console, f"samples: {sheets[split.name]}")
    unused = unused_splits(findings, (train.name, val.name))
    if write_problems(list(findings.values()), [*unused, *ignored], out / PROBLEMS_FILE):
        print_line(console, f"all problems: {out / PROBLEMS_FILE}")
    fatal = [line for name in dict.fromkeys((train.name, val.name)) for line in findings[name].fatal]
    differing = [] if fatal else different_categories(train.records.class_names, val.records.class_names)
    if differing:
        names = f"{train.name} and {val.name}"
        fatal = [f"{names} have different categories: {', '.join(differing)} in one of them alone"]
    trained_on = findings[train.name].trained_on
    command = None if fatal else training_command(train, val, root, arguments.set, trained_on)
    leaks = [] if fatal or train is val else shared_files(*(findings[split.name].files() for split in (train, val)))
    result = {"usable": not fatal, "fatal": fatal, "splits": list(map(as_json, findings.values())), "command": command}
    result |= {"leaks": [list(map(str, pair)) for pair in leaks], "unused": unused, "ignored": others}
    cli.print_result(arguments, result)
    if fatal:
        raise UserError(f"{root} cannot be trained on as it is: {first_of(fatal)}")
    if leaks:
        example = f"{leaks[0][0]} is {leaks[0][1]}"
        line = f"{len(leaks)} images of {val.name} are in {train.name} too, so that AP measures what is known by heart"
        print_line(console, f"{line}: {example}", "yellow")
    for line in unused:
        print_line(console, line, "yellow")
    if train is val:
        print_line(console, "there is one split: a run would be measured on the images that it learns from", "yellow")
        print_line(console, f"split it: {split_command(root)}")
    found = findings[train.name]
    size = tile_size(found.split.records, found.boxes, load_config(fit_here(trained_on).config, arguments.set).data)
    if size:
        text = f"half of the boxes are smaller than {FINEST_STRIDE} pixels in the network of the next command"
        print_line(console, f"{text}, which is the distance between its finest points", "yellow")
        print_line(console, f"cut the images: {tile_command(root, size)}")
    print_line(console, f"train on it: {command}")
    return 0


def unused_splits(findings: dict[str, Findings], used: Sequence[str]) -> list[str]:
    """Return a line for each split that is not used, with what it holds."""
    lines = []
    for name, found in findings.items():
        holds = "{images} images with {boxes} boxes".format(**found.figures)
        if name not in used:
            lines.append(f"neither trained nor measured on: {name}, {'which has errors' if found.fatal else holds}")
    return lines


def show_findings(found: Findings, console: Console) -> None:
    """Print the findings of a split as text and tables."""
    print_line(console, f"{found.split.name}: {found.split.records.path}, images in {found.split.images}")
    for line in listed_lines([f"cannot be trained on: {line}" for line in found.fatal], MAX_LINES):
        print_line(console, line, "red")
    if found.fatal:
        return
    figures = found.figures
    table = Table("", "least", "middle", "most", caption="sides in pixels; aspect: width / height")
    for name in ("image_sides", "boxes_per_image", "box_sides", "box_aspects"):
        table.add_row(name.replace("_", " "), *(f"{value:g}" for value in figures[name]))
    console.print(table)
    sizes = ", ".join(f"{share:.0%} {name}" for name, share in figures["box_sizes"].items())
    line = f"{figures['images']} images, {figures['boxes']} boxes ({sizes}), {figures['crowds']} of them crowd"
    print_line(console, line)
    if figures["weighted"]:
        print_line(console, f"{figures['weighted']} boxes have a weight other than 1, {figures['weight_0']} of them 0")
    classes = Table("class", "boxes")
    for name, count in figures["classes"].items():
        classes.add_row(name, str(count))
    console.print(classes)
    for line in found.problems.summary() or ["no problems found"]:
        print_line(console, line, "yellow" if found.problems.summary() else None)


def as_json(found: Findings) -> dict:
    """Return the findings of a split as plain values."""
    split = found.split
    paths = {"annotations": str(split.records.path), "image_folder": str(split.images)}
    return {"split": split.name, **paths, "fatal": found.fatal, **found.problems.as_json(), **found.figures}


def run_convert(arguments: argparse.Namespace, console: Console, progress_console: Console) -> int:
    """Convert and print what was written. Raises UserError for options of the other layout, and DataError for data."""
    source = read_source(arguments.root, arguments.names, arguments.train, arguments.val)
    out = arguments.out
    converted = convert(source, out, arguments.skip_broken, arguments.force, progress_console)
    if converted.left_out:
        print_text(console, f"left out: {counted(converted.left_out, out)}", "yellow")
    images = f"{converted.images} images, {converted.background} of them without a box"
    print_line(console, f"{out}: {images}, {converted.boxes} boxes, {len(converted.classes)} classes")
    for line in converted.notes:
        print_line(console, line, "yellow")
    if "val" not in converted.splits:
        print_line(console, "there are no images to validate with", "yellow")
        print_line(console, f"split them off: {split_command(out)}")
    else:
        print_line(console, f"look at it: {check_command(out)}")
    cli.print_result(arguments, {"out": str(out), **converted._asdict()})
    return 0


def run_split(arguments: argparse.Namespace, console: Console, progress_console: Console) -> int:
    """Split and print what was written. Raises UserError."""
    root, out = arguments.root, arguments.out
    group, seed, force = arguments.group, arguments.seed, arguments.force
    written = split_data(root, out, arguments.val, group, seed, force, progress_console)
    for line in written.warnings:
        print_line(console, line, "yellow")
    print_line(console, f"{out}: {written.train} images to train on, {written.val} to validate with")
    print_line(console, f"look at it: {check_command(out)}")
    cli.print_result(arguments, {"out": str(out), **written._asdict()})
    return 0


def run_tile(arguments: argparse.Namespace, console: Console, progress_console: Console) -> int:
    """Cut and print what was written. Raises UserError."""
    root, out = arguments.root, arguments.out
    tiled = tile_data(root, out, arguments.size, arguments.overlap, arguments.force, progress_console)
    for line in tiled.left_out:
        print_line(console, line, "yellow")
    for split, count in tiled.tiles.items():
        print_line(
            console, f"{split}: {count} tiles with {tiled.objects[split]} objects, {tiled.empty[split]} with none"
        )
    print_line(console, f"look at it: {check_command(out)}")
    cli.print_result(arguments, {"out": str(out), **tiled._asdict()})
    return 0


if __name__ == "__main__":
    cli.run(main)
