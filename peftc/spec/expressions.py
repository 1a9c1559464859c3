"""`$alpha / $rank`: variables and + - * / over numbers, nothing else."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Mapping
from typing import Any

from peftc.spec.parse import LARGEST

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
NAME = re.compile(r"\$([A-Za-z_][A-Za-z0-9_]*)")
LIMIT = 200  # characters


def is_expression(value: Any) -> bool:
    """Whether a value is text that uses a variable."""
    return isinstance(value, str) and "$" in value


def evaluate(text: str, variables: Mapping[str, Any]) -> Any:
    """The value of an expression; whole quotients are integers.

    Raises:
        KeyError: for a variable that is not there.
        ValueError: for anything that is no expression of numbers.
    """
    if NAME.fullmatch(text.strip()):
        return variables[text.strip()[1:]]
    for name in NAME.findall(text):
        if name not in variables:
            raise KeyError(name)
    plain = NAME.sub(r"\1", text)
    if "$" in plain or len(text) > LIMIT:
        raise ValueError("not an expression")
    try:
        tree = ast.parse(plain.strip(), mode="eval")
    except (SyntaxError, RecursionError, MemoryError) as cause:
        raise ValueError("not an expression") from cause
    value = walk(tree.body, variables)
    if not abs(value) <= LARGEST:
        raise ValueError("too large a number")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def walk(node: ast.expr, variables: Mapping[str, Any]) -> Any:
    """Evaluate a syntax tree of names, numbers and four operators."""
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name):
        value = variables[node.id]
        if type(value) not in (int, float):
            raise ValueError(f"`{node.id}` is not a number")
        return value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -walk(node.operand, variables)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = walk(node.left, variables), walk(node.right, variables)
        try:
            return OPERATORS[type(node.op)](left, right)
        except (ZeroDivisionError, OverflowError) as cause:
            raise ValueError(str(cause)) from cause
    raise ValueError("only names, numbers, + - * / and brackets")
