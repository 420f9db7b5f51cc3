"""Expressions over recipe fields: read by Python's grammar, of which little is allowed, and computed by hand.

Numbers are exact: whole numbers and decimals are fractions (0.1 is a tenth), and stay so until a root or a logarithm
has no exact value. Nothing is ever executed, and no number may grow beyond MOST_BITS bits.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from framework.recipe.errors import Origin, RecipeError, shorten
from framework.sweep.numbers import Impossible, apply, call, compare, exact, require_number

Number = Fraction | float
Value = Number | bool | str | None
Lookup = Callable[[str], object]
LONGEST, MOST_NODES = 1000, 200
FUNCTIONS = ("min", "max", "log2", "sqrt")
WORDS = {"true": True, "false": False, "null": None}
ALLOWED = "numbers, fields, + - * / // % **, comparisons, and, or, not, min, max, log2, sqrt"
_SINGLE_EQUALS = re.compile(r"(?<![<>=!])=(?!=)")
_COMPARISONS = {ast.Eq: "==", ast.NotEq: "!=", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**"}


@dataclass(frozen=True)
class Expression:
    """text: as given. tree: of allowed nodes alone. names: fields and sizes, each time that they stand in it."""

    text: str
    tree: ast.expr
    names: tuple[str, ...]
    origin: Origin

    def value(self, lookup: Lookup) -> Value:
        """What it comes to, names looked up. Raises Impossible where it has no value."""
        return evaluate(self.tree, lookup)


@dataclass(frozen=True)
class Equation:
    """left = right."""

    text: str
    left: Expression
    right: Expression
    origin: Origin

    @property
    def names(self) -> tuple[str, ...]:
        return self.left.names + self.right.names


def read_expression(text: object, what: str, origin: Origin) -> Expression:
    """Raises RecipeError for anything but ALLOWED. what: the key that errors name."""
    if not isinstance(text, str) or len(text) > LONGEST:
        raise RecipeError(what, f"given {shorten(text)}; allowed: text of up to {LONGEST} characters", origin)
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        hint = " (== compares)" if _SINGLE_EQUALS.search(text) else ""
        raise _refused(text, what, origin, hint) from None
    if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
        raise RecipeError(what, f"given {shorten(text)}; allowed: up to {MOST_NODES} terms and operators", origin)
    try:
        names = tuple(_names(tree))
    except Impossible as error:
        raise _refused(text, what, origin, f": {error}") from None
    return Expression(text, tree, names, origin)


def read_equation(text: object, what: str, origin: Origin) -> Equation:
    """`left = right`, of expressions that are numbers. Raises RecipeError."""
    sides = _SINGLE_EQUALS.split(text) if isinstance(text, str) else []
    if len(sides) != 2:
        raise RecipeError(what, f"given {shorten(text)}; allowed: an equation with one =, as "
                          "data.batch_size * data.seq_len = 65536", origin)
    return Equation(text, *(read_expression(side, what, origin) for side in sides), origin)


def evaluate(node: ast.expr, lookup: Lookup) -> Value:
    """Of an allowed tree. Both sides of `and` and `or` must be true or false. Raises Impossible."""
    match node:
        case ast.Constant():
            return exact(node.value)
        case ast.BinOp():
            return apply(_OPERATORS[type(node.op)], *(evaluate(side, lookup) for side in (node.left, node.right)))
        case ast.UnaryOp(op=ast.Not()):
            return not _truth(node.operand, lookup)
        case ast.UnaryOp():
            value = require_number(evaluate(node.operand, lookup))
            return -value if isinstance(node.op, ast.USub) else value
        case ast.BoolOp():
            truths = (_truth(value, lookup) for value in node.values)
            return all(truths) if isinstance(node.op, ast.And) else any(truths)
        case ast.Compare():
            values = [evaluate(each, lookup) for each in (node.left, *node.comparators)]
            steps = zip(node.ops, values, values[1:], strict=False)
            return all(compare(_COMPARISONS[type(op)], left, right) for op, left, right in steps)
        case ast.Call():
            return call(node.func.id, [evaluate(argument, lookup) for argument in node.args])
    name = dotted(node)
    return WORDS[name] if name in WORDS else exact(lookup(name))


def dotted(node: ast.expr) -> str | None:
    """`a.b.c` of a name, None of anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else None
    return None if inner is None else f"{inner}.{node.attr}"


def _truth(node: ast.expr, lookup: Lookup) -> bool:
    value = evaluate(node, lookup)
    if not isinstance(value, bool):
        raise Impossible(f"{ast.unparse(node)} is neither true nor false")
    return value


def _names(node: ast.expr) -> list[str]:
    """The names in a tree, left to right. Raises Impossible for a node that is not allowed."""
    if (name := dotted(node)) is not None:
        return [] if name in WORDS else [name]
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return []
        case ast.BinOp() if type(node.op) in _OPERATORS:
            inner = [node.left, node.right]
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd()):
            inner = [node.operand]
        case ast.BoolOp():
            inner = node.values
        case ast.Compare() if all(type(op) in _COMPARISONS for op in node.ops):
            inner = [node.left, *node.comparators]
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS and not node.keywords:
            inner = node.args
            if len(inner) < (2 if name in ("min", "max") else 1) or (name in ("log2", "sqrt") and len(inner) > 1):
                raise Impossible(f"{name} of {len(inner)}")
        case _:
            raise Impossible(f"{shorten(ast.unparse(node))} is not among them")
    return [name for each in inner for name in _names(each)]


def _refused(text: str, what: str, origin: Origin, hint: str) -> RecipeError:
    return RecipeError(what, f"given {shorten(text)}; allowed: {ALLOWED}{hint}", origin)

