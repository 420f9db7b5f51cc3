"""Solving an equation for the one field that it leaves open, by turning operations around."""

from __future__ import annotations

import ast
import math
from fractions import Fraction

from framework.recipe.yaml_reader import LARGEST
from framework.sweep.expression import Equation, Lookup, dotted, evaluate
from framework.sweep.numbers import Impossible, Number, apply, logarithm, power, require_number

TOLERANCE = 1e-12  # between floats; fractions must be equal
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Pow: "**"}


def holds(equation: Equation, lookup: Lookup) -> bool:
    """Whether both sides are equal: exactly, or where a root is no fraction to TOLERANCE. Raises Impossible."""
    left, right = (require_number(side.value(lookup)) for side in (equation.left, equation.right))
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    return math.isclose(left, right, rel_tol=TOLERANCE)


def solve(equation: Equation, unknown: str, lookup: Lookup) -> Number:
    """The value of a name that stands once in the equation, all others looked up; of two roots the positive one.

    Raises Impossible where there is none, or where //, %, min or max stand around the name.
    """
    if equation.names.count(unknown) > 1:
        raise Impossible(f"{unknown} stands in it twice; allowed: once")
    inside, other = ((equation.left, equation.right) if unknown in equation.left.names
                     else (equation.right, equation.left))
    found = _invert(inside.tree, require_number(other.value(lookup)), unknown, lookup)
    sides = [side.value(lambda name: found if name == unknown else lookup(name))
             for side in (equation.left, equation.right)]
    if all(isinstance(side, Fraction) for side in sides) and sides[0] != sides[1]:
        raise Impossible(f"no {unknown} solves it")
    return found


def recipe_number(number: Number) -> int | float:
    """As a recipe holds it: whole where it is whole. Raises Impossible beyond what a recipe can hold."""
    if isinstance(number, Fraction) and number.denominator == 1 and abs(number) < LARGEST:
        return int(number)
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise Impossible("the solution is too large")
    return value


def _invert(node: ast.expr, target: Number, unknown: str, lookup: Lookup) -> Number:
    """The unknown's value that makes a tree equal to the target."""
    if dotted(node) == unknown:
        return target
    match node:
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return _invert(node.operand, -target if isinstance(node.op, ast.USub) else target, unknown, lookup)
        case ast.Call(func=ast.Name(id="log2")):
            return _invert(node.args[0], power(Fraction(2), target), unknown, lookup)
        case ast.Call(func=ast.Name(id="sqrt")) if target >= 0:
            return _invert(node.args[0], apply("*", target, target), unknown, lookup)
        case ast.BinOp() if type(node.op) in _SIGNS:
            is_left = _holds_name(node.left, unknown)
            inner, other = (node.left, node.right) if is_left else (node.right, node.left)
            known = require_number(evaluate(other, lookup))
            return _invert(inner, _undo(_SIGNS[type(node.op)], target, known, is_left), unknown, lookup)
    raise Impossible(f"{ast.unparse(node)} cannot be turned around to find {unknown}")


def _undo(sign: str, target: Number, known: Number, is_left: bool) -> Number:
    """u of `u sign known = target`, or of `known sign u = target`."""
    if sign == "+":
        return apply("-", target, known)
    if sign == "-":
        return apply("+", target, known) if is_left else apply("-", known, target)
    if sign == "*":
        return apply("/", target, known)
    if sign == "/":
        return apply("*", target, known) if is_left else apply("/", known, target)
    if is_left and target < 0 and known % 2 == 1:
        return -power(-target, apply("/", Fraction(1), known))
    if is_left:
        return power(target, apply("/", Fraction(1), known))
    return logarithm(target, known)


def _holds_name(node: ast.expr, name: str) -> bool:
    """Compared as whole names: a.b does not stand in a.b.c."""
    if dotted(node) is not None:
        return dotted(node) == name
    return any(_holds_name(child, name) for child in ast.iter_child_nodes(node) if isinstance(child, ast.expr))
