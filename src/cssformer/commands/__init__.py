"""The commands of the command line, a file each: its options, and what it calls and prints."""

from cssformer.commands.calibrate import CALIBRATE
from cssformer.commands.check import CHECK
from cssformer.commands.command import Command
from cssformer.commands.doctor import DOCTOR
from cssformer.commands.evaluate import EVALUATE
from cssformer.commands.explain import EXPLAIN
from cssformer.commands.export import EXPORT
from cssformer.commands.models import MODELS
from cssformer.commands.predict import PREDICT
from cssformer.commands.prepare import PREPARE
from cssformer.commands.profile import PROFILE
from cssformer.commands.score import COMPARE, SCORE
from cssformer.commands.serve import SERVE
from cssformer.commands.studies import STUDIES
from cssformer.commands.train import TRAIN

COMMANDS: dict[str, Command] = {
    **PREPARE,
    "check": CHECK,
    "train": TRAIN,
    "evaluate": EVALUATE,
    "score": SCORE,
    "compare": COMPARE,
    "calibrate": CALIBRATE,
    "predict": PREDICT,
    **STUDIES,
    "profile": PROFILE,
    "export": EXPORT,
    "serve": SERVE,
    "explain": EXPLAIN,
    "models": MODELS,
    "doctor": DOCTOR,
}
"""Words -> command, in the order of the help."""
