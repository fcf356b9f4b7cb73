"""`python -m dwtriton.evaluate`: COCO metrics, detections and a report of a checkpoint."""

import argparse
import json
from functools import partial

from rich.console import Console
from rich.table import Table

from dwtriton.checkpoints.checkpoint import check_classes
from dwtriton.config.load import MACHINE_KEYS, flatten
from dwtriton.console import cli
from dwtriton.console.cli import print_line, print_text
from dwtriton.console.lost_ranks import end_with_lost_ranks
from dwtriton.console.progress import progress
from dwtriton.core import elastic, ranks
from dwtriton.core.files import check_absent, make_folder, write_text
from dwtriton.data.batch import Batch
from dwtriton.data.images import read_image
from dwtriton.data.loaders import eval_loader
from dwtriton.data.prepare import data_as_json, data_notes, draw_missing_shapes, prepare_validation
from dwtriton.evaluate.coco_metrics import evaluate, gather_results
from dwtriton.evaluate.evaluators import EVALUATORS, check_installed
from dwtriton.evaluate.report import report_html
from dwtriton.inference.detect import detect
from dwtriton.inference.ready import load_detector

FILES = ("detections.json", "metrics.json", "report.html")
EXAMPLES = """\
  python -m dwtriton.evaluate --weights runs/shapes-1/last.pt
  python -m dwtriton.evaluate --weights best.pt --data ~/coco --out results --set inference.nms_iou=0.5
  python -m dwtriton.evaluate --weights best.pt --force --json    replace earlier results, print JSON
  torchrun --nproc-per-node 8 -m dwtriton.evaluate --weights best.pt --data ~/coco    on eight GPUs"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.evaluate", "Evaluate a checkpoint: COCO metrics and a report.", EXAMPLES)
    cli.add_options(parser, "--weights", "--data")
    where = "folder for the results (default: `evaluation` beside the weights)"
    cli.add_options(parser, "--out", metavar="DIR", required=False, help=where)
    cli.add_options(parser, "--force", help="replace the results of an earlier evaluation")
    which = "pycocotools: COCO's own program, the same figures in 30 times the time (default: hotcoco)"
    parser.add_argument("--evaluator", choices=EVALUATORS, help=which)
    cli.add_options(parser, "--set")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    with ranks.process_group(elastic.restart_store()):
        return end_with_lost_ranks(run)(arguments, cli.open_console(arguments, silent=not ranks.is_main()))


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Detect in this rank's share of the images; rank 0 evaluates and writes. Return the exit code."""
    out = arguments.out or arguments.weights.parent / "evaluation"
    with ranks.raise_on_all_ranks():
        check_installed(arguments.evaluator)
        check_absent([out / name for name in FILES], arguments.force)
        ready = load_detector(arguments.weights, overrides=arguments.set, data_root=arguments.data)
        checkpoint, cfg = ready.checkpoint, ready.config
    ranks.check_same(flatten(cfg), ignore=MACHINE_KEYS)
    with ranks.raise_on_all_ranks(), ranks.main_process_first():
        draw_missing_shapes(cfg.data, console)
    with ranks.raise_on_all_ranks():
        data = prepare_validation(cfg, classes=checkpoint.class_names or None)
        check_classes(arguments.weights, checkpoint, data.class_names)
        data.check_measurable()
        make_folder(out)
    ranks.check_same({"data": data.fingerprint, "iteration": checkpoint.iteration, "--out": str(out)})

    loader = eval_loader(data, cfg, ranks.rank(), ranks.world_size())
    broken: set[str] = set()
    with progress(console, "batches", len(loader)) as advance:

        def on_batch(batch: Batch) -> None:
            broken.update(batch.broken)
            advance()

        own = detect(ready.predict, loader, data.category_ids, on_batch)
    gathered = gather_results(own, broken)
    if gathered is None:
        return 0
    results, broken = gathered
    write_text(out / "detections.json", json.dumps(results))
    print_line(console, f"{len(results)} detections in {out / 'detections.json'}")
    evaluation = evaluate(data.coco, results, arguments.evaluator, cfg.inference.max_detections)
    metrics = {**evaluation.metrics, "class_ap": evaluation.class_ap}
    write_text(out / "metrics.json", json.dumps(metrics))

    kind = "weights" if checkpoint.ema is None else "EMA weights"
    notes = [f"{arguments.weights}: {kind} after iteration {checkpoint.iteration}"]
    if not checkpoint.class_names:
        notes.append(f"{arguments.weights} has no class names; those of the data are shown")
    problems = {"validation": data.problems}
    notes += data_notes(cfg.data, problems)
    notes += [f"left out, its objects count as missed: {line}" for line in sorted(broken)]
    paths = dict(zip(data.image_ids, data.paths))
    title = f"{arguments.weights} on {cfg.data.root}"
    read = partial(read_image, exif=data.cfg.exif, max_pixels=data.cfg.max_pixels)
    write_text(out / "report.html", report_html(evaluation, data.coco, results, paths, title, notes, read))
    for line in notes:
        print_line(console, line)
    table = Table("class", "AP")
    for name, ap in evaluation.class_ap.items():
        table.add_row(name, "-" if ap < 0 else f"{ap:.3f}")
    console.print(table)
    print_text(console, evaluation.table)
    print_line(console, f"metrics in {out / 'metrics.json'}, report in {out / 'report.html'}")
    left_out = data_as_json(cfg.data, problems) | {"unreadable": sorted(broken)}
    cli.print_result(arguments, {"out": str(out), **metrics, "data": left_out})
    return 0


if __name__ == "__main__":
    cli.run(main)
