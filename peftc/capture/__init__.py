"""Hugging Face model -> Program: loading, tracing, normalising."""

from peftc.capture.model import capture
from peftc.capture.program import Input, Output, Program, Signature

__all__ = ["Input", "Output", "Program", "Signature", "capture"]
