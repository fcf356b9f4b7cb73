"""`python -m dwtriton.train`: train a detector."""

import argparse
import time
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch.distributed.elastic.multiprocessing.errors import record

from dwtriton.checkpoints.checkpoint import load_checkpoint
from dwtriton.config.files import config_names
from dwtriton.config.schema import Config, load_config, override_config
from dwtriton.console import cli
from dwtriton.console.cli import print_line
from dwtriton.core import elastic, ranks
from dwtriton.core.errors import UserError
from dwtriton.data.batching import OrientedBatchSampler, training_buckets
from dwtriton.data.prepare import prepare_data
from dwtriton.train.plan import plan
from dwtriton.train.signals import Interrupted
from dwtriton.train.trainer import NonFiniteLossError, Trainer

TORCHRUN_GRACE_SECONDS = 10  # seconds: torchrun's report calls the process that ended first the cause

EXAMPLES = """\
  python -m dwtriton.train --cfg shapes                        train on generated data, minutes on a CPU
  python -m dwtriton.train --cfg r50_1x --data ~/coco          the published recipe
  python -m dwtriton.train --cfg r50_1x --data ~/coco --set data.batch_size=8 --set backbone.weights=resnet50.pth
  python -m dwtriton.train --cfg r50_1x --data ~/coco --weights r50_refine.pt    start from a checkpoint
  python -m dwtriton.train --resume --out runs/shapes-1        go on where a run stopped
  torchrun --nproc-per-node 8 -m dwtriton.train --cfg r50_1x --data ~/coco --out runs/r50    on eight GPUs
  python -m dwtriton.train --cfg shapes --set train.tensorboard=true    with event files for TensorBoard
  python -m dwtriton.train --cfg r50_1x --data ~/coco --plan   batches, padding and graphs of that run
  python -m dwtriton.train --cfg list                          the configs and their published AP"""


def build_parser() -> argparse.ArgumentParser:
    parser = cli.command_parser("dwtriton.train", "Train a Dual Weighting detector on data in COCO layout.", EXAMPLES)
    which = "config, by name or as a TOML file; list prints all names"
    cli.add_option(parser, "--cfg", metavar="NAME|FILE|list", required=False, help=which)
    cli.add_option(parser, "--data", help="folder in COCO layout (sets data.root)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="run folder (default: runs/<config>-<date>-<time>)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    cli.add_option(parser, "--weights", required=False, help="checkpoint to start from (sets train.weights)")
    parser.add_argument("--plan", action="store_true", help="print batches, padding and graphs of the run, and exit")
    cli.add_option(parser, "--set")
    return parser


def read_config(arguments: argparse.Namespace) -> Config:
    """The config named on the command line, or the run's own when resuming without one."""
    if arguments.resume and not arguments.out:
        raise UserError("--resume needs --out: the run folder to go on with")
    if not arguments.cfg and not arguments.resume:
        raise UserError(f"--cfg is missing: name a TOML file or one of {', '.join(config_names())}")
    if ranks.under_torchrun() and not arguments.out:
        raise UserError(
            "under torchrun --out is needed: the run folder, the same for every process and after a restart"
        )
    overrides = [*arguments.set, *([f"train.weights={arguments.weights}"] if arguments.weights else [])]
    if arguments.cfg:
        return load_config(arguments.cfg, overrides, arguments.data)
    return override_config(load_checkpoint(arguments.out / "last.pt").config, overrides, arguments.data)


def config_table() -> Table:
    """The shipped configs with the AP that the paper's authors published for them."""
    table = Table("config", "what", "published AP", caption="COCO val2017 box AP as published; not yet reproduced here")
    for name in config_names():
        cfg = load_config(name)
        table.add_row(name, cfg.description, "" if cfg.published_ap is None else f"{cfg.published_ap:.1f}")
    return table


def main() -> int:
    arguments = build_parser().parse_args()
    if arguments.cfg == "list":
        cli.open_console(arguments).print(config_table())
        cli.print_result(arguments, {name: load_config(name).published_ap for name in config_names()})
        return 0
    run = record(train) if ranks.under_torchrun() else train  # so that torchrun's report has the traceback
    with ranks.process_group(elastic.restart_store()):
        return run(arguments, cli.open_console(arguments, silent=not ranks.is_main()))


def train(arguments: argparse.Namespace, console: Console) -> int:
    """Train on this process of the job; returns the exit code."""
    with ranks.raise_on_all_ranks():
        cfg = read_config(arguments)
    if arguments.plan:
        with ranks.raise_on_all_ranks(), ranks.main_process_first():
            train_set = prepare_data(cfg, console)[0]
            console.print(plan(cfg, train_set))
        if ranks.is_main():
            steps = OrientedBatchSampler(train_set.landscape, cfg.data.batch_size, cfg.train.seed).steps
            buckets = training_buckets(train_set, cfg)
            cli.print_result(arguments, {"epochs": cfg.schedule.epochs, "steps": steps, "buckets": buckets})
        return 0
    out = arguments.out or Path("runs") / f"{Path(arguments.cfg).stem}-{datetime.now():%Y%m%d-%H%M%S}"
    ranks.check_same({"--out": str(out), "--resume": arguments.resume})
    trainer = Trainer(cfg, out, console)
    again = elastic.restarted() and ranks.broadcast_object((out / "last.pt").exists())
    trainer.resume() if arguments.resume or again else trainer.start()
    print_line(console, trainer.summary())
    began = time.perf_counter()
    try:
        evaluation = trainer.fit()
    except Interrupted:
        print_line(
            console, f"stopped at iteration {trainer.iteration}; go on: python -m dwtriton.train --resume --out {out}"
        )
        return 130
    except NonFiniteLossError as error:
        return cli.report_failure(str(error)) if ranks.is_main() else 1
    except RuntimeError as error:
        if not ranks.lost_ranks():
            raise
        print_line(
            Console(stderr=True),
            f"error: rank {ranks.rank()} lost contact with another rank after iteration {trainer.iteration}; which one "
            f"ended, and how, stands in torchrun's report. Go on from the last checkpoint with --resume --out {out}; "
            f"torchrun --max-restarts does so by itself",
        )
        time.sleep(TORCHRUN_GRACE_SECONDS)
        return 1
    if evaluation is None:
        return 0
    print_line(console, evaluation.table)
    minutes = (time.perf_counter() - began) / 60
    print_line(
        console, f"trained and evaluated in {minutes:.1f} minutes; {trainer.left_out()} images and annotations left out"
    )
    print_line(console, f"pictures: {out / 'predictions.png'} and {out / 'curves.png'}; weights: {out / 'last.pt'}")
    cli.print_result(arguments, {"out": str(out), "iteration": trainer.iteration, **evaluation.metrics})
    return 0


if __name__ == "__main__":
    cli.run(main)
