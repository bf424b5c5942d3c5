"""Where the curves of a training go beside ``metrics.csv``: Lightning's loggers, by ``training.logger``."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from cssformer.training.recipe import Recipe
from cssformer.utils.errors import UserError

PROJECT = "cssformer"
"""What W&B's project and MLflow's experiment are called, unless their environment variables say otherwise."""


def make_loggers(recipe: Recipe, start: int, ids: Mapping[str, str]) -> list[Logger]:
    """The recipe's loggers; those that write files write them into the run folder.

    Args:
        recipe: its ``training.logger`` and ``output``.
        start: the step that the training goes on from; each start has a CSV file of its own.
        ids: of :func:`run_ids`, of the training that is gone on with.

    Raises:
        UserError: a logger's package is not installed.
    """
    run, asked = Path(recipe.output), recipe.training.logger
    names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
    return [_make(name, run, start, ids.get(name)) for name in names]


def _make(name: str, run: Path, start: int, known: str | None) -> Logger:
    try:
        match name:
            case "tensorboard":
                return TensorBoardLogger(run, name="", version="tensorboard", default_hp_metric=False)
            case "csv":
                # Lightning would delete a file that is there.
                return CSVLogger(run, name="csv", version=f"from_{start}", flush_logs_every_n_steps=1)
            case "wandb":
                project = os.environ.get("WANDB_PROJECT", PROJECT)
                return WandbLogger(project=project, name=run.resolve().name, save_dir=run, id=known)
        server = os.environ.get("MLFLOW_TRACKING_URI")
        return MLFlowLogger(
            os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
            run_name=run.resolve().name,
            # Lightning's own default is refused by MLflow 3.
            tracking_uri=server or f"sqlite:///{run.resolve() / 'mlflow.db'}",
            artifact_location=None if server else (run.resolve() / "mlartifacts").as_uri(),
            run_id=known,
        )
    except ModuleNotFoundError as error:
        raise UserError(
            f'training.logger {name} needs its package; install it with: pip install "cssformer[{name}]".'
        ) from error


def run_ids(loggers: Sequence[Logger]) -> dict[str, str]:
    """What W&B and MLflow call this training, for it to be gone on with."""
    kinds = {"wandb": WandbLogger, "mlflow": MLFlowLogger}
    return {name: str(each.version) for name, kind in kinds.items() for each in loggers if isinstance(each, kind)}


def log_picture(loggers: Sequence[Logger], picture: NDArray[np.uint8], step: int) -> None:
    """Show a validation's picture, RGB (H, W, 3), where the logger shows pictures."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image("validation", picture, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image("validation", [picture], step=None, caption=[f"step {step}"])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, picture, f"validation/{step}.png")


@contextmanager
def finished(loggers: Sequence[Logger]) -> Iterator[None]:
    """End W&B's run with the training: the next one in this process would be logged into it."""
    try:
        yield
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.finish()
