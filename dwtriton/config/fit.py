"""Settings that fit a data set and a machine, where those of the published recipe, made for COCO, do not."""

from typing import NamedTuple

from dwtriton.config.load import load_config

BATCHES = ((1000, 16), (100, 8), (0, 4))  # images in a step, for data of at least so many images
ITERATIONS = {"r50_1x": 3000, "small": 600}  # that a run on small data should have
MAX_EPOCHS = 100
WARMUP_SHARE = 0.1  # of a run, at most


class Fit(NamedTuple):
    """A config by name, and the settings that differ from it."""

    config: str
    settings: list[str]


def fit_to_data(images: int, on_gpu: bool) -> Fit:
    """Return the config for so many training images: `r50_1x` on a GPU and `small` on a CPU, with what has to change.

    Small data get smaller batches, more epochs, up to 100, and a warm-up of a tenth of the run at most.
    """
    name = "r50_1x" if on_gpu else "small"
    cfg = load_config(name)
    batch = min(cfg.data.batch_size, next(size for least, size in BATCHES if images >= least))
    per_epoch = -(-images // batch)
    epochs = max(cfg.schedule.epochs, min(MAX_EPOCHS, -(-ITERATIONS[name] // per_epoch)))
    settings = {"data.batch_size": (batch, cfg.data.batch_size), "schedule.epochs": (epochs, cfg.schedule.epochs)}
    if cfg.schedule.kind == "step":
        milestones = [epochs * milestone // cfg.schedule.epochs for milestone in cfg.schedule.milestones]
        settings["schedule.milestones"] = (milestones, list(cfg.schedule.milestones))
    warmup = min(cfg.schedule.warmup_iterations, int(WARMUP_SHARE * epochs * per_epoch))
    settings["schedule.warmup_iterations"] = (warmup, cfg.schedule.warmup_iterations)
    return Fit(name, [f"{key}={value}".replace(" ", "") for key, (value, given) in settings.items() if value != given])
