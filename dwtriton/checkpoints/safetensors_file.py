"""Checkpoints as safetensors files: the tensors that detection uses, and as text what describes them."""

import json
import zipfile
from pathlib import Path
from types import ModuleType

import torch

from dwtriton.checkpoints.checkpoint import FORMAT, Checkpoint, upgrade
from dwtriton.config.load import check_config, dump_config
from dwtriton.core.errors import UserError
from dwtriton.core.files import write_file
from dwtriton.model.detector import build_detector
from dwtriton.model.state_dict import check_tensors

KEY = "dwtriton"  # of the text, in the metadata of a file


def save_safetensors(path: Path, checkpoint: Checkpoint) -> None:
    """Write the weights that detection uses (the EMA, if there is one), with config, classes and iteration as JSON.

    Raises UserError if safetensors is not installed.
    """
    save = _safetensors().torch.save
    text = json.dumps(
        {
            "format": FORMAT,
            "config": dump_config(checkpoint.config),
            "class_names": checkpoint.class_names,
            "category_ids": checkpoint.category_ids,
            "iteration": checkpoint.iteration,
        }
    )
    tensors = {name: tensor.contiguous().clone() for name, tensor in checkpoint.weights.items()}
    write_file(path, lambda file: file.write(save(tensors, metadata={KEY: text})))


def load_safetensors(path: Path) -> Checkpoint:
    """Read what `save_safetensors` wrote.

    Raises UserError for a file that is missing, damaged, of another origin or without the tensors of its config, and if
    safetensors is not installed.
    """
    safetensors = _safetensors()
    if path.is_dir() or zipfile.is_zipfile(path):
        kind = "a folder" if path.is_dir() else "a zip archive, as torch.save writes"
        raise UserError(f"{path} is {kind}, and no safetensors file")
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            model = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- no mapping
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} is no safetensors file, or a damaged one ({error})") from None
    if text is None:
        raise UserError(
            f"{path} has no config and no classes among its metadata: only files that `to-safetensors` wrote can be "
            f"converted, and this one holds {len(model)} tensors of another origin"
        )
    try:
        state = upgrade(json.loads(text) | {"model": model}, str(path))
    except (json.JSONDecodeError, TypeError):
        raise UserError(f"{path} is damaged: its metadata are not JSON") from None
    config = check_config(state["config"], str(path))
    with torch.device("meta"):
        check_tensors(build_detector(config).state_dict(), model, str(path))
    return Checkpoint(**state | {"config": config})


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError:
        raise UserError("safetensors is not installed: pip install 'dwtriton[safetensors]'") from None
    return safetensors
