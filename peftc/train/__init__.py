"""Tasks, their data, and the training loop: only what the spec trains has gradients."""

from peftc.train.data import Rows, read_rows
from peftc.train.evaluate import evaluate
from peftc.train.loop import Result, train

__all__ = ["Result", "Rows", "evaluate", "read_rows", "train"]
