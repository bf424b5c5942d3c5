"""A network as two files: ``config.json``, to be read by people too, and ``model.safetensors``."""

import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError

if TYPE_CHECKING:
    from cssformer.model.cssformer import SegmentationNetwork

CONFIG, WEIGHTS = "config.json", "model.safetensors"
RUN_MODEL = "model"
"""Where a training run keeps its model: a run folder may be given wherever a model folder is asked for."""
RUN_CHECKPOINTS = "checkpoints"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
FILE_ARGUMENTS = {
    "pretrained",
    "weights",
    "checkpoint_path",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
}
Network = TypeVar("Network", bound="SegmentationNetwork")


def save(model: "SegmentationNetwork", folder: Path) -> None:
    with atomic_write(folder / CONFIG) as path:
        path.write_text(json.dumps(model.config, indent=2) + "\n")
    # A copy without shared or permuted storage, which safetensors refuses.
    state = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as path:
        try:
            save_file(state, path)
        except SafetensorError as error:
            # A full disk, above all, which is no OSError here.
            raise UserError(f"Cannot write {folder / WEIGHTS}: {error}.") from error


def load(source: str | Path, **hub_args: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        if Path(source).exists():
            folder = Path(source) / RUN_MODEL if (Path(source) / RUN_MODEL).is_dir() else Path(source)
            config_path, weights_path = folder / CONFIG, folder / WEIGHTS
        elif not HUB_ID.fullmatch(str(source)) or Path(source).parent.is_dir():
            # `runs/mine` in a folder that is here is no model id.
            raise UserError(f"There is no model folder {source}.")
        else:
            config_path = Path(hf_hub_download(str(source), CONFIG, **hub_args))
            weights_path = Path(hf_hub_download(str(source), WEIGHTS, **hub_args))
        config = json.loads(config_path.read_text())
        if not isinstance(config, dict):
            raise UserError(f"{config_path} does not hold a model's configuration.")
        return config, load_file(weights_path)
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise UserError(f"There is no model folder {source}, nor can it be had from the Hugging Face hub.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        if (Path(source) / RUN_CHECKPOINTS).is_dir():
            raise UserError(f"The run {source} is not finished; continue it with --resume.") from error
        raise UserError(f"{source} is no model: it must hold {CONFIG} and {WEIGHTS}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise UserError(f"The model in {source} cannot be read: {error}.") from error


def build(network: type[Network], config: dict[str, Any], state: dict[str, Tensor], source: str | Path) -> Network:
    # A config may come from anybody: nothing in it may make timm load or fetch a file.
    refused = sorted({*config, *config.get("backbone_args", {})} & FILE_ARGUMENTS)
    if refused:
        raise UserError(f"{source}/{CONFIG} asks for other files by {refused[0]!r}; take it out.")
    try:
        model = network(**config)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}/{CONFIG} does not describe a {network.__name__}: {error}.") from error
    bias = state.get("head.classify.bias")
    if bias is not None and len(bias) != model.num_classes:
        raise UserError(f"The weights in {source} have {len(bias)} classes, its {CONFIG} says {model.num_classes}.")
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"The weights in {source} do not fit its {CONFIG}: {str(error).splitlines()[1].strip()}"
        ) from error
    return model.eval()


def push(model: "SegmentationNetwork", repo_id: str, private: bool, token: str | None) -> str:
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save(model, Path(folder))
        page = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload CSSFormer")
    return str(page)
