"""Event files of a run: what they hold, and what a resume makes of them."""

import shutil
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dwtriton.core.errors import UserError
from dwtriton.train.metrics import read_metrics
from dwtriton.train.signals import Interrupted
from dwtriton.train.tensorboard import open_writer, write_row
from dwtriton.train.trainer import Trainer

STEP_FIGURES = ("loss", "loss_cls_pos", "loss_loc", "loss_cls_neg", "lr")


def read_events(folder):
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return events.Reload()


def scalars(events, tag):
    return [(event.step, event.value) for event in events.Scalars(tag)]


def assert_events_hold_the_metrics(folder):
    """Every row once, under its iteration, in order."""
    events, rows = read_events(folder), read_metrics(folder / "metrics.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    evaluations = [row for row in rows if row["kind"] == "evaluation"]
    for name in STEP_FIGURES:
        assert scalars(events, f"train/{name}") == [
            (row["iteration"], pytest.approx(row[name], rel=1e-6)) for row in steps
        ]
    for name in ("AP", "AP50", "ARl"):
        assert scalars(events, f"evaluation/{name}") == [
            (row["iteration"], pytest.approx(row[name], rel=1e-6)) for row in evaluations
        ]
    for name, ap in evaluations[-1]["class_ap"].items():
        assert scalars(events, f"class_ap/{name}")[-1] == (
            evaluations[-1]["iteration"],
            pytest.approx(ap, rel=1e-6),
        )
    return events, steps, evaluations


def test_event_files_hold_curves_and_pictures_and_go_on_after_a_resume(tiny, tmp_path, console):
    out = tmp_path / "run"
    trainer = Trainer(tiny("train.tensorboard=true"), out, console)
    assert f"tensorboard --logdir {out}" in trainer.summary()
    step = trainer.step
    last = trainer.per_epoch + 2  # two iterations after the first epoch

    def stopping_step(batches, epoch):
        step(batches, epoch)
        trainer.stop_requested = trainer.iteration == last

    trainer.step = stopping_step
    with pytest.raises(Interrupted):
        trainer.fit()
    events, steps, evaluations = assert_events_hold_the_metrics(out)
    assert (len(steps), len(evaluations)) == (last, 1)
    logged = [iteration for iteration in range(1, last + 1) if iteration % 2 == 0]  # train.log_every
    assert [step for step, _ in scalars(events, "train/images_per_second")] == logged
    assert all(speed > 0 for _, speed in scalars(events, "train/images_per_second"))
    assert all(0 <= waited <= 1 for _, waited in scalars(events, "train/data_wait"))
    (picture,) = events.Images("predictions")
    assert picture.step == trainer.per_epoch
    assert picture.encoded_image_string.startswith(b"\x89PNG")
    assert min(picture.width, picture.height) > 300

    again = Trainer(tiny("train.tensorboard=true"), out, console, resume=True)
    again.folder.events.add_scalar("train/loss", 99, 1 + last)  # as of a run that died after its checkpoint
    again.folder.events.close()
    again = Trainer(tiny("train.tensorboard=true"), out, console, resume=True)
    again.fit()
    events, steps, evaluations = assert_events_hold_the_metrics(out)
    assert (len(steps), len(evaluations)) == (2 * trainer.per_epoch, 2)
    assert [picture.step for picture in events.Images("predictions")] == [trainer.per_epoch, 2 * trainer.per_epoch]


def test_a_run_resumed_with_the_key_gets_its_whole_history(finished, tmp_path):
    shutil.copyfile(finished[0] / "metrics.jsonl", tmp_path / "metrics.jsonl")
    rows = read_metrics(tmp_path / "metrics.jsonl")
    open_writer(tmp_path, rows[-1]["iteration"], rows).close()
    assert_events_hold_the_metrics(tmp_path)


def test_a_run_that_died_before_its_first_checkpoint_leaves_nothing_in_the_curves(tmp_path):
    for losses in ([9.0, 8.0, 7.0], [5.0, 4.0]):
        writer = open_writer(tmp_path, 0, [])
        for iteration, loss in enumerate(losses, 1):
            write_row(writer, {"kind": "step", "iteration": iteration, "epoch": 1, "loss": loss})
        writer.close()
    assert scalars(read_events(tmp_path), "train/loss") == [(1, 5.0), (2, 4.0)]


def test_without_tensorboard_the_run_says_so_before_it_begins(tiny, tmp_path, console, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=r"pip install 'dwtriton\[tensorboard\]'"):
        Trainer(tiny("train.tensorboard=true"), tmp_path / "run", console)
    assert not (tmp_path / "run").exists()
    Trainer(tiny(), tmp_path / "run", console)


def test_without_the_key_there_are_no_event_files(finished):
    assert not list(finished[0].glob("events*"))


def test_class_names_of_any_text_and_folders_that_tensorboard_cannot_open(tmp_path):
    writer = open_writer(tmp_path, 0, [])
    write_row(writer, {"kind": "evaluation", "iteration": 1, "epoch": 1, "AP": 0.5, "class_ap": {"\ud800": 0.5}})
    writer.close()
    assert scalars(read_events(tmp_path), r"class_ap/\ud800") == [(1, 0.5)]
    with pytest.raises(UserError, match=r"TensorBoard cannot write to .*: choose another --out"):
        open_writer(tmp_path / "caf\udce9", 0, [])
