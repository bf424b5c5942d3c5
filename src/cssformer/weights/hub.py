"""A network as two files: ``config.json``, to be read by people too, and ``model.safetensors``."""

import json
import math
import re
import shutil
import stat
import warnings
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import HfApi, ModelHubMixin, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Size, Tensor
from torch.overrides import TorchFunctionMode

import cssformer
from cssformer.data.channels import Channels
from cssformer.utils.atomic import atomic_write
from cssformer.utils.errors import UserError
from cssformer.weights.bundled import bundled_models
from cssformer.weights.card import model_card
from cssformer.weights.config import FORMAT, check_config
from cssformer.weights.constructor import parameters, remembering
from cssformer.weights.family import decoder_of
from cssformer.weights.run_files import RECIPE, RUN_CHECKPOINTS, RUN_MODEL

if TYPE_CHECKING:
    from typing_extensions import Self

    from cssformer.model.cssformer import SegmentationNetwork

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CLASS_LAYERS = ("head.classify.", "aux_head.4.")
"""How the names of weights begin of which there are as many as classes."""
OF_A_MODEL = (CONFIG, WEIGHTS, RUN_MODEL, RUN_CHECKPOINTS, RECIPE)
"""A folder that has one of these is meant, where a bundled model has the same name."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
LARGEST_CONFIG = 2**24
"""Bytes."""


@dataclass(frozen=True)
class Metadata:
    """What is kept with a network for those who use it.

    Attributes:
        classes: a name per class.
        colours: an RGB triple, 0 to 255, per class.
        raw_ids: the id that each class has in the user's own labels.
        inference: how pictures are to be predicted, options of :func:`cssformer.inference.predict`.
        backbone_licence: of the pretrained weights that the backbone began with, as timm states it; a file states none.
        channels: what pictures hold, where they are no photographs (RGB of 8 bits).
        multilabel: whether a pixel may be of several classes, each of the probability sigmoid(logit).
    """

    classes: tuple[str, ...] | None = None
    colours: tuple[tuple[int, int, int], ...] | None = None
    raw_ids: tuple[int, ...] | None = None
    inference: dict[str, Any] = field(default_factory=dict)
    backbone_licence: str | None = None
    channels: Channels | None = None
    multilabel: bool = False


class HubModel(ModelHubMixin):
    """Saving, loading and ``push_to_hub`` of a network."""

    metadata = Metadata()

    def __new__(cls, *args: Any, **kwargs: Any) -> "Self":
        network = super().__new__(cls, *args, **kwargs)
        network._hub_mixin_config = {}
        return network

    def __init_subclass__(cls, **options: Any) -> None:
        """Its instances know the arguments they were made with, those that a subclass passes on too."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = remembering(cls.__init__)  # type: ignore[method-assign]

    @property
    def hparams(self) -> dict[str, Any]:
        """The constructor's arguments but for the first weights, with the normalisation in use."""
        backbone = cast("SegmentationNetwork", self).backbone
        given = {
            name: value
            for name, value in cast("dict[str, Any]", self._hub_mixin_config).items()
            if name not in ("pretrained", "weights")
        }
        in_use = {"mean": list(backbone.mean), "std": list(backbone.std)}
        return {**given, **in_use, "backbone_args": given.get("backbone_args") or {}}

    def saved_config(self) -> dict[str, Any]:
        """What ``config.json`` says of this network.

        Raises:
            UserError: no network could be loaded by it.
        """
        kind, taken = type(self).__name__, parameters(type(self)).keys()
        if lacking := sorted({"backbone", "num_classes", "mean", "std", "backbone_args"} - taken):
            raise UserError(
                f"A {kind} cannot be saved: its constructor must take {', '.join(lacking)} too, best as **arguments "
                "that it passes on."
            )
        config = {
            "format": FORMAT,
            "architecture": kind,
            "version": cssformer.__version__,
            "network": self.hparams,
            **asdict(self.metadata),
        }
        try:
            text = json.dumps(config)
        except TypeError as error:
            raise UserError(f"The network cannot be saved with its arguments: {error}.") from error
        config = {**json.loads(text), "id": sha256(text.encode()).hexdigest()}
        check_config(config, "The network to be saved", taken)
        return config

    def save_pretrained(
        self,
        save_directory: str | Path,
        half: bool = False,
        *,
        model_card_kwargs: dict[str, str] | None = None,
        **_: Any,
    ) -> None:
        """Write ``config.json`` and ``model.safetensors`` into a folder, made if needed.

        Args:
            save_directory: the folder.
            half: store matrices and kernels as float16, which halves the file. Biases, norms and statistics stay
                float32, and a loaded network is float32 throughout.
            model_card_kwargs: the card's text, from :meth:`push_to_hub`.

        Raises:
            UserError: the folder cannot be written, the network could not be loaded again, or a weight is too large
                for float16.
        """
        network, folder = cast("SegmentationNetwork", self), Path(save_directory)
        text = json.dumps(self.saved_config(), indent=2)
        state = {name: tensor.detach().contiguous() for name, tensor in network.state_dict().items()}
        if half:
            matrices = {name for name, parameter in network.named_parameters() if parameter.ndim > 1}
            state = {name: tensor.half() if name in matrices else tensor for name, tensor in state.items()}
            if large := next((name for name, tensor in state.items() if tensor.isinf().any()), None):
                raise UserError(f"{large} has weights too large for float16; save the network without half.")
        # The weights hold the config too, and are written first: see `load`.
        with atomic_write(folder / CONFIG) as config_path, atomic_write(folder / WEIGHTS) as weights_path:
            config_path.write_text(text + "\n", encoding="utf-8")
            try:
                save_file(state, weights_path, {"config": text})
            except SafetensorError as error:
                # A full disk, above all, which is no OSError here.
                raise UserError(f"Cannot write {folder / WEIGHTS}: {error}.") from error
            # safetensors leaves a file that only its owner may read.
            shutil.copymode(config_path, weights_path)
        if model_card_kwargs is not None:
            (folder / "README.md").write_text(model_card_kwargs["text"], encoding="utf-8")

    @classmethod
    def preset(cls, name: str, num_classes: int = 150, **arguments: Any) -> "Self":
        """A new network of the family, nano, small or base (the paper's); docs/performance.md tells their costs.

        Args:
            name: the size.
            num_classes: how many classes are told apart.
            **arguments: the constructor's others, ``backbone`` first of all; they go over the size's own.

        Raises:
            UserError: there is no such size; others as the constructor's.
        """
        network: Any = cls
        made: Self = network(num_classes=num_classes, **{**decoder_of(name), **arguments})
        return made

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload config, weights and a model card to the Hugging Face hub.

        Args:
            repo_id: the model id, such as "me/mine"; made if needed.
            **options: ``run``, ``licence`` and ``data_licence`` of :func:`cssformer.weights.card.model_card`, which say
                what the card tells; others are those of ``huggingface_hub.ModelHubMixin.push_to_hub`` (``private``,
                ``token``, ``branch``, ``commit_message``, ...).

        Returns:
            The address of the upload.

        Raises:
            UserError: the run cannot be read, or as :meth:`save_pretrained`.
        """
        card = {name: options.pop(name) for name in ("run", "licence", "data_licence") if name in options}
        text = str(model_card(cast("SegmentationNetwork", self), repo_id, **card))
        return super().push_to_hub(repo_id, model_card_kwargs={"text": text}, **options)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, source: str | Path, num_classes: int | None = None, **hub_args: Any
    ) -> "Self":
        """A saved network, in eval mode: a model or run folder, a bundled model, or a model id of the Hugging Face hub.

        Args:
            source: what :meth:`save_pretrained` or :meth:`push_to_hub` wrote, or the name of a bundled model; a folder
                here of the same name goes first if it is a model or run.
            num_classes: for other classes than the saved network's. The last layers begin anew, names and colours of
                the classes are left out; all else is kept.
            **hub_args: passed on to ``huggingface_hub.hf_hub_download`` (``revision``, ``token``, ...).

        Raises:
            UserError: nothing there, not such a network, or one of another format.

        Warns:
            Layers begin anew.
        """
        config, state = load(source, **hub_args)
        held = config["network"]["num_classes"]
        if num_classes is not None and num_classes != held:
            nameless = {"classes": None, "colours": None, "raw_ids": None}
            config = {**config, **nameless, "network": {**config["network"], "num_classes": num_classes}}
            check_config(config, "The network asked for", _parameters_of(config))
        network = _called(config["architecture"], cls)
        if network is None:
            raise UserError(
                f"The model in {source} is a {config['architecture']}, not a {cls.__name__}; if that is a class of "
                "your own, import it first, in Python."
            )
        try:
            with _Bounded(state):
                model = cast("SegmentationNetwork", network(**config["network"]))
        except UserError:
            raise
        except Exception as error:  # a config may come from anybody, and timm raises all kinds
            reason = " ".join(repr(str(error))[1:-1].split())[:200] or type(error).__name__
            raise UserError(f"{source}/{CONFIG} does not describe a {network.__name__}: {reason}.") from error
        bias = state.get("head.classify.bias")
        if bias is not None and len(bias) != held:
            raise UserError(f"The weights in {source} have {len(bias)} classes, its {CONFIG} says {held}.")
        if model.num_classes != held:
            anew = {name: value for name, value in model.state_dict().items() if name.startswith(CLASS_LAYERS)}
            state = {**state, **anew}
            warnings.warn(
                f"{', '.join(sorted(anew))} begin anew, for {model.num_classes} classes instead of {held}; train "
                "before you predict.",
                stacklevel=2,
            )
        _require_same(model.state_dict(), state, f"The weights in {source} do not fit its {CONFIG}")
        model.load_state_dict(state)
        model.metadata = metadata_of(config)
        return cast("Self", model.eval())


class _Bounded(TorchFunctionMode):
    """Ends the construction of a network once it is far more work than any network with such weights.

    timm makes up to 9 times the elements that stay, and of VGG a classifier of 400 MB that does not.
    """

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.left = 2**29 + 32 * sum(tensor.numel() for tensor in state.values())

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            # A call, with all that Python does around it, takes as long as so many elements.
            self.left -= 2**15 + result.numel()
            if self.left < 0:
                raise ValueError("it would be far larger than its weights")
        return result


def _require_same(own: dict[str, Tensor], given: dict[str, Tensor], refusal: str) -> None:
    """Raise if the tensors differ by name, shape, or in being integers."""

    def kinds(state: dict[str, Tensor]) -> set[tuple[str, Size, bool]]:
        return {(name, value.shape, value.is_floating_point()) for name, value in state.items()}

    if wrong := sorted({repr(name)[1:-1][:100] for name, *_ in kinds(own) ^ kinds(given)}):
        names = ", ".join(wrong[:3]) + (", ..." if len(wrong) > 3 else "")
        raise UserError(f"{refusal}: {len(wrong)} tensors are missing, too many or of another shape: {names}.")


def _kinds(cls: type[HubModel]) -> list[type[HubModel]]:
    # The latest first: a notebook defines a class again and again.
    return [cls, *(kind for child in reversed(cls.__subclasses__()) for kind in _kinds(child))]


def _called(name: Any, cls: type[HubModel]) -> type[HubModel] | None:
    """The class of this name, of ``cls`` and those below it."""
    return next((kind for kind in _kinds(cls) if kind.__name__ == name), None)


def _parameters_of(config: Any) -> Collection[str]:
    """Names of the arguments of the class that a config names, if this program knows it."""
    named = _called(config.get("architecture"), HubModel) if isinstance(config, dict) else None
    return parameters(named).keys() if named else ()


def load(source: str | Path, **hub_args: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The checked config and the weights of a saved network, see :meth:`HubModel.from_pretrained`."""
    try:
        bundled, given = bundled_models(), Path(source)
        if str(source) in bundled and not any((given / name).exists() for name in OF_A_MODEL):
            given = bundled[str(source)]
        if given.exists():
            folder = given / RUN_MODEL if (given / RUN_MODEL).is_dir() else given
            config_path, weights_path = folder / CONFIG, folder / WEIGHTS
        elif not HUB_ID.fullmatch(str(source)) or Path(source).parent.is_dir():
            # `runs/mine` in a folder that is here is no model id.
            named = "" if "/" in str(source) or not bundled else f", nor a bundled model; there is {', '.join(bundled)}"
            raise UserError(f"There is no model folder {source}{named}.")
        else:
            require_hub(str(source), (CONFIG,), **hub_args)
            config_path = Path(hf_hub_download(str(source), CONFIG, **hub_args))
            weights_path = Path(hf_hub_download(str(source), WEIGHTS, **hub_args))
        for path, most in ((config_path, LARGEST_CONFIG), (weights_path, math.inf)):
            status = path.stat()
            if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                raise UserError(f"{path} is no file of a model.")
        config = _parsed(config_path.read_bytes(), config_path)
        with safe_open(weights_path, "pt") as weights:
            # Who was killed between the two files has left the weights of one network and the config of another.
            if kept := (weights.metadata() or {}).get("config"):
                own = _parsed(kept.encode(), weights_path)
                config = config if config.get("id") == own.get("id") else own
            return config, {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118
    except HubUnreachable as error:
        raise UserError(
            f"There is no model folder {source}, and as a model id it cannot be had: {error}; give a model or run "
            "folder."
        ) from error
    except SafetensorError as error:
        raise UserError(f"{source}/{WEIGHTS} is damaged or no file of safetensors; get a whole copy.") from error
    except (HFValidationError, LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        raise UserError(f"There is no model folder {source}, nor can it be had from the Hugging Face hub.") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        if (Path(source) / RUN_CHECKPOINTS).is_dir():
            raise UserError(
                f"The run {source} has no network yet, because it was never validated; continue it with: cssformer "
                f"train --output {source} --resume"
            ) from error
        raise UserError(f"{source} is no model: it must hold {CONFIG} and {WEIGHTS}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The model in {source} cannot be read: {error}.") from error


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    """The checked config that a file holds."""
    try:
        config: dict[str, Any] = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its config is no JSON; get a whole copy.") from error
    check_config(config, str(path), _parameters_of(config))
    return config


class HubUnreachable(Exception):
    """The Hugging Face hub does not answer."""


def require_hub(repository: str, files: tuple[str, ...], timeout: float = 5.0, **hub_args: Any) -> None:
    """Ask once whether the hub answers; its own downloads try for half a minute, with a line for each time.

    Args:
        repository: a model id.
        files: nothing is asked if one of these is in the cache.
        timeout: in seconds.
        **hub_args: of ``huggingface_hub.hf_hub_download``.

    Raises:
        HubUnreachable: it does not.
    """
    place = {name: hub_args[name] for name in ("cache_dir", "revision") if name in hub_args}
    if any(isinstance(try_to_load_from_cache(repository, name, **place), str) for name in files):
        return
    asked = {name: hub_args[name] for name in ("revision", "token") if name in hub_args}
    try:
        HfApi().model_info(repository, timeout=timeout, **asked)
    except (HfHubHTTPError, HFValidationError):
        # It answers; whoever downloads is told what.
        return
    except Exception as error:  # of whatever library the hub's client is built on
        raise HubUnreachable(
            f"{constants.ENDPOINT} cannot be reached ({' '.join(str(error).split())[:100]})"
        ) from error


def metadata_of(config: dict[str, Any]) -> Metadata:
    """What a checked config says for those who use the network."""
    classes, colours, raw_ids, channels = (config.get(name) for name in ("classes", "colours", "raw_ids", "channels"))
    return Metadata(
        classes=None if classes is None else tuple(classes),
        colours=None if colours is None else tuple((r, g, b) for r, g, b in colours),
        raw_ids=None if raw_ids is None else tuple(raw_ids),
        inference=config.get("inference", {}),
        backbone_licence=config.get("backbone_licence"),
        channels=None if channels is None else Channels.read(channels),
        multilabel=config.get("multilabel", False),
    )
