"""`python -m dwtriton.train`: train a detector."""

import argparse
import shlex
import time
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch.distributed.elastic.multiprocessing.errors import record

from dwtriton.config.load import config_names, load_config, override_config
from dwtriton.config.schema import Config
from dwtriton.console import cli
from dwtriton.console.cli import print_line, print_text
from dwtriton.console.lost_ranks import end_with_lost_ranks
from dwtriton.core import elastic, ranks
from dwtriton.core.errors import UserError, cause_of_failure
from dwtriton.data.prepare import data_as_json, prepare_data
from dwtriton.evaluate.coco_metrics import EvaluatorsDisagreeError
from dwtriton.train.finite import NonFiniteLossError
from dwtriton.train.forecast import forecast
from dwtriton.train.plan import make_plan
from dwtriton.train.resume import load_last, state_of_run
from dwtriton.train.run_folder import LAST, new_folder
from dwtriton.train.settle import training_device
from dwtriton.train.signals import Interrupted
from dwtriton.train.trainer import Trainer

EXAMPLES = """\
  python -m dwtriton.train --cfg shapes                        train on generated data, minutes on a CPU
  python -m dwtriton.train --cfg r50_1x --data ~/coco          the published recipe
  python -m dwtriton.train --cfg r50_1x --data ~/coco --set data.batch_size=8 --set backbone.weights=resnet50.pth
  python -m dwtriton.train --cfg r50_1x --data ~/coco --weights r50_refine.pt    start from a checkpoint
  python -m dwtriton.train --resume --out runs/shapes-1        continue a run that was stopped
  torchrun --nproc-per-node 8 -m dwtriton.train --cfg r50_1x --data ~/coco --out runs/r50    on eight GPUs
  python -m dwtriton.train --cfg shapes --set train.tensorboard=true    with event files for TensorBoard
  python -m dwtriton.train --cfg r50_1x --data ~/coco --plan   batches, padding and graphs of that run
  python -m dwtriton.train --cfg list                          the configs and their published AP"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.train", "Train a Dual Weighting detector on data in COCO layout.", EXAMPLES)
    which = "config, by name or as a TOML file; list prints all names"
    cli.add_options(parser, "--cfg", metavar="NAME|FILE|list", required=False, help=which)
    cli.add_options(parser, "--data", help="folder in COCO layout (sets data.root)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="run folder (default: runs/<config>-<date>-<time>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    changed = "with --resume: continue although the data are others than before"
    parser.add_argument("--data-changed", action="store_true", help=changed)
    cli.add_options(parser, "--weights", required=False, help="checkpoint to start from (sets train.weights)")
    parser.add_argument("--plan", action="store_true", help="print batches, graphs and time of the run, and exit")
    cli.add_options(parser, "--set")
    return parser


def main() -> int:
    arguments = build_parser().parse_args()
    if arguments.cfg == "list":
        return list_configs(arguments)
    command = end_with_lost_ranks(print_plan if arguments.plan else train)
    if ranks.under_torchrun():
        command = record(command)  # puts the traceback into torchrun's report
    with ranks.process_group(elastic.restart_store()):
        return command(arguments, cli.open_console(arguments, silent=not ranks.is_main()))


def list_configs(arguments: argparse.Namespace) -> int:
    """Print the shipped configs with the AP that the paper's authors published for them."""
    table = Table("config", "what", "published AP", caption="COCO val2017 box AP as published; not yet reproduced here")
    configs = {name: load_config(name) for name in config_names()}
    for name, cfg in configs.items():
        table.add_row(name, cfg.description, "" if cfg.published_ap is None else f"{cfg.published_ap:.1f}")
    cli.open_console(arguments).print(table)
    cli.print_result(arguments, {name: cfg.published_ap for name, cfg in configs.items()})
    return 0


def print_plan(arguments: argparse.Namespace, console: Console) -> int:
    """Print batches, padding, graphs and time of a run without starting it."""
    with ranks.raise_on_all_ranks():
        cfg = read_config(arguments)
    with ranks.raise_on_all_ranks(), ranks.main_process_first():
        train_set, val_set = prepare_data(cfg, console)
        plan = make_plan(cfg, train_set)
    console.print(plan.text)
    expected = forecast(cfg, train_set, len(val_set), plan, training_device())
    console.print(expected.text)
    if ranks.is_main():
        found = {name: getattr(plan, name) for name in ("epochs", "steps", "buckets", "padding")}
        seconds = {f"{name}_seconds": getattr(expected, name) for name in ("step", "image", "compile", "run")}
        cli.print_result(arguments, found | seconds | {"workers": expected.workers})
    return 0


def train(arguments: argparse.Namespace, console: Console) -> int:
    """Train on this rank and return the exit code."""
    with ranks.raise_on_all_ranks():
        cfg = read_config(arguments)
    with nullcontext(arguments.out) if arguments.out else new_folder(Path(arguments.cfg).stem) as out:
        return train_in(out, cfg, arguments, console)


def train_in(out: Path, cfg: Config, arguments: argparse.Namespace, console: Console) -> int:
    """Train on this rank in the folder `out` and return the exit code."""
    began = time.perf_counter()
    ranks.check_same({"--out": str(out), "--resume": arguments.resume, "--data-changed": arguments.data_changed})
    restarted = elastic.restarted() and ranks.all_gather_object((out / LAST).exists())[0]
    trainer = Trainer(cfg, out, console, arguments.resume or restarted, arguments.data_changed)
    print_text(console, trainer.summary())
    try:
        with ranks.explain_lost_ranks():
            evaluation = trainer.fit()
    except Interrupted:
        resume = f"python -m dwtriton.train --resume --out {out}"
        print_line(console, f"stopped at iteration {trainer.iteration}; continue with: {resume}")
        return 130
    except (NonFiniteLossError, EvaluatorsDisagreeError) as error:
        return cli.report_failure(str(error)) if ranks.is_main() else 1
    except ranks.LostRankError as error:
        resume = (
            f"Continue from the last checkpoint with --resume --out {out}; torchrun --max-restarts does so by itself"
        )
        raise ranks.LostRankError(f"{error} after iteration {trainer.iteration}. {resume}") from error.__cause__
    except Exception as error:
        if cause := cause_of_failure(error):
            return cli.report_failure(f"{cause}. {state_of_run(out, trainer.saved, trainer.total)}")
        raise
    if evaluation is None:
        return 0
    minutes = (time.perf_counter() - began) / 60
    print_text(console, evaluation.table)
    left_out = f"{trainer.left_out()} images and annotations left out"
    print_line(console, f"trained and evaluated in {minutes:.1f} minutes; {left_out}")
    print_line(console, f"plots: {out / 'predictions.png'} and {out / 'curves.png'}; weights: {out / LAST}")
    evaluate = shlex.join(["python", "-m", "dwtriton.evaluate", "--weights", str(out / "best.pt")])
    print_line(console, f"look closer: {evaluate}")
    data = data_as_json(trainer.cfg.data, trainer.problems) | {"unreadable": sorted(trainer.broken)}
    result = {"out": str(out), "iteration": trainer.iteration, **evaluation.metrics, "data": data}
    cli.print_result(arguments, result)
    return 0


def read_config(arguments: argparse.Namespace) -> Config:
    """Return the config named on the command line, or that of the checkpoint when resuming without one."""
    if arguments.resume and not arguments.out:
        raise UserError("--resume needs --out: the folder of the run to continue")
    if arguments.data_changed and not arguments.resume:
        raise UserError("--data-changed belongs to --resume: a new run takes the data as they are")
    if not arguments.cfg and not arguments.resume:
        raise UserError(f"--cfg is missing: name a TOML file or one of {', '.join(config_names())}")
    if ranks.under_torchrun() and not arguments.out:
        raise UserError("under torchrun --out is needed: the run folder, the same for every rank and after a restart")
    overrides = [*arguments.set, *([f"train.weights={arguments.weights}"] if arguments.weights else [])]
    if arguments.cfg:
        return load_config(arguments.cfg, overrides, arguments.data)
    return override_config(load_last(arguments.out).config, overrides, arguments.data)


if __name__ == "__main__":
    cli.run(main)
