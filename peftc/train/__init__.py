"""Tasks, their data, and the training loop: only what the spec trains has gradients."""

from peftc.train.data import Rows, read_rows
from peftc.train.loop import Result, evaluate, train

__all__ = ["Result", "Rows", "evaluate", "read_rows", "train"]
