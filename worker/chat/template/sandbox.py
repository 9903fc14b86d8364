"""Jinja's sandbox with limits: a template can neither escape, nor block the process, nor fill its memory.

Loops, macros and all operations that can create long texts or lists are charged to the `limits` of the rendering. To do
this, the template's syntax tree is changed so that they call functions of this module. `template` renders with it.
Without a meter it behaves as plain Jinja.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from types import BuiltinMethodType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from .limits import COSTS, FORBIDDEN, SHORT, CostExceeded, charge, charge_result, charge_value, length

MAX_BITS = 4096  # maximum size of an integer
MAX_COLUMNS = 100_000  # maximum of padding, indentation and similar arguments
_WIDE = re.compile(r"\d{6}|\*")


class _ChargeInserter(NodeTransformer):
    """Insert calls of the filters below into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:
        return self._ticking(node)

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        return self._ticking(node)

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        written = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        written += SHORT * sum(1 for _ in node.find_all(nodes.Expr))
        tick = nodes.ExprStmt(
            _filtered(nodes.Const(written + 1, lineno=node.lineno), "_tick", node.lineno), lineno=node.lineno
        )
        node.body.insert(0, tick)
        return node  # type: ignore[no-any-return]

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat", node.lineno)

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        """Charge for keys: they are hashed."""
        self.generic_visit(node)
        if not isinstance(node.key, nodes.Const):
            node.key = _filtered(node.key, "_whole", node.lineno)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        part = node.arg
        if not isinstance(part, nodes.Slice):
            return node
        ends = [end or nodes.Const(None, lineno=node.lineno) for end in (part.start, part.stop, part.step)]
        return _filtered(node.node, "_slice", node.lineno, ends)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """Charge for both sides, unless one is a constant: then only the beginning of the other is read."""
        self.generic_visit(node)
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        if not any(isinstance(side, nodes.Const) for side in sides):
            node.expr = _filtered(node.expr, "_whole", node.lineno)
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, "_whole", node.lineno)
        return node


def _filtered(node: nodes.Expr, name: str, line: int, arguments: Sequence[nodes.Expr] = ()) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=line)


def _tick(n: object) -> None:
    charge(n if isinstance(n, int) and n > 0 else 1)


def _concat(parts: Sequence[Any]) -> str:
    texts = []
    for part in parts:
        charge_value(part)
        texts.append(str(part))
    return "".join(texts)


def _slice(value: Any, start: Any, stop: Any, step: Any) -> Any:
    part = value[start:stop:step]
    charge_result(part)
    return part


def _whole(value: Any) -> Any:
    charge_value(value)
    return value


# -- filters, tests, operators, calls ----------------------------------------------------------------------------------

_SHALLOW = frozenset(
    (
        *("length", "count", "first", "last", "default", "d", "attr", "items", "list", "int", "float", "map"),
        *("select", "reject", "selectattr", "rejectattr"),
    )
)
"""Filters that read only a value's direct elements; operations on the elements are charged separately."""
_PADDING = frozenset({"center", "indent", "batch", "slice", "wordwrap", "truncate", "round", "tojson"})
_OF_ELEMENTS = frozenset({"list", "batch", "slice", "sort", "unique", "join", "map", "select", "reject", "min", "max"})


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    n_passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)  # also copies Jinja's attributes of the function
    def limited(*arguments: Any, **named: Any) -> Any:
        before, subject, *more = (*arguments[:n_passed],), *arguments[n_passed:]
        if isinstance(subject, str):
            charge_value(subject)
            if name in _OF_ELEMENTS:
                charge(8 * len(subject))
        elif name not in _SHALLOW:
            if isinstance(subject, Iterator):
                subject = list(subject)
            charge_value(subject)
        if more or named:
            _check_arguments(name, subject, (*more, *named.values()))
        result = function(*before, subject, *more, **named)
        charge_result(result)
        return result

    return limited


def _check_arguments(name: str, subject: Any, more: Sequence[Any]) -> None:
    for argument in more:
        if name in _PADDING and isinstance(argument, int) and abs(argument) > MAX_COLUMNS:
            raise CostExceeded(f"{name} is given a number that is too large")
        charge_value(argument)
    if isinstance(subject, str):
        if name == "indent":
            charge(subject.count("\n") * max((n if isinstance(n, int) else length(n) for n in more), default=0))
        elif name == "replace" and len(more) > 1:
            charge(COSTS["replace"](subject, more))
        elif name == "format":
            _check_format(subject)
    elif name == "join" and isinstance(subject, (list, tuple)):
        charge(len(subject) * length(more[0]))
    elif name == "sum" and any(not isinstance(start, (int, float, str)) for start in more):
        raise CostExceeded("sum supports only numbers")


def _check_format(text: str | bytes) -> None:
    if _WIDE.search(text if isinstance(text, str) else text.decode("latin-1")):
        raise CostExceeded("a format is too wide")


def _limited_test(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def limited(*arguments: Any) -> Any:
        if len(arguments) > 1:
            for argument in arguments:
                charge_value(argument)
        return function(*arguments)

    return limited


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        _check_format(format_spec)
        charge_value(value)
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        charge_value(value)
        return super().convert_field(value, conversion)


@jinja2.pass_context
def _written(context: Context, value: Any) -> Any:
    charge_value(value)
    return value


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_written, **options)  # no constant folding while parsing
        del self.globals["lipsum"]
        for name in ("==", "eq", "equalto", "!=", "ne", "in", "<", "lt", "<=", "le", ">", "gt", ">=", "ge"):
            test: Any = self.tests[name]
            self.tests[name] = _limited_test(test)
        for name, function in self.filters.items():
            self.filters[name] = _limited_filter(name, function)
        self.filters |= {"_tick": _tick, "_concat": _concat, "_slice": _slice, "_whole": _whole}

    def replace_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = _limited_filter(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _ChargeInserter().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            result = left + right
            charge_result(result)
            return result
        if operator == "%":
            if isinstance(left, (str, bytes)):
                _check_format(left)
                charge_value(left)
                charge_value(right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise CostExceeded("a number is too large")
        elif operator == "*":
            charge(length(left) * right if isinstance(right, int) else length(right) * left)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        charge(1)
        if isinstance(__obj, BuiltinMethodType):
            args = _check_call(__obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, tuple):
            charge_value(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text, is_map = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **kwargs: Any) -> str:
            charge(len(text))
            if is_map:
                return _Formatter(self).vformat(text, (), args[0])
            return _Formatter(self).vformat(text, args, kwargs)

        return formatted


def _check_call(method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    owner, name = method.__self__, method.__name__
    if name in FORBIDDEN:
        raise SecurityError(f"{name} is not allowed")
    if not isinstance(owner, (str, bytes)):
        for value in (*args, *([owner] if name in ("index", "count") else [])):
            if name not in ("append", "pop"):
                charge_value(value)
        return args
    if name == "join" and args and isinstance(args[0], Iterator):
        args = (list(args[0]), *args[1:])
    try:
        charge(COSTS[name](owner, (*args, *kwargs.values())) if name in COSTS else len(owner))
    except (TypeError, ValueError, LookupError, AttributeError):
        charge(len(owner))  # wrong arguments: the method itself raises the error
    return args
