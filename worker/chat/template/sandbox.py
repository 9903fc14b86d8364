"""Jinja's sandbox with limits: a template can neither escape, nor block the process, nor fill its memory.

Loops, macros and all operations that can create long texts or lists are charged to the `limits` of the rendering. To do
this, the template's syntax tree is changed so that they call functions of this module. `costs` has the filters and
methods that a template may use. `template` renders with it.
Without a meter it behaves as plain Jinja.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import BuiltinMethodType
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from .costs import FILTERS, MAX_BITS, charge_filter, charge_method, charge_percent, charge_widths, checked_integer
from .limits import SHORT, CostExceeded, charge, charge_result, charge_value, length


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
        if len(node.ops) > 1 or not any(isinstance(side, nodes.Const) for side in (node.expr, node.ops[0].expr)):
            node.expr = _filtered(node.expr, "_whole", node.lineno)
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, "_whole", node.lineno)
        return node

    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        """Refuse `{% autoescape %}`: its texts have methods whose costs are unknown."""
        raise jinja2.TemplateAssertionError("autoescape is not supported", node.lineno)


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


def _limited_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    n_passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)  # also copies Jinja's attributes of the function
    def limited(*arguments: Any, **named: Any) -> Any:
        charge(1)  # `map` calls it for each element
        before, subject, *more = (*arguments[:n_passed],), *arguments[n_passed:]
        subject = charge_filter(name, subject, more, named)
        result = checked_integer(function(*before, subject, *more, **named))
        charge_result(result)
        return result

    return limited


def _refused_filter(name: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise SecurityError(f"filter {name} is not supported")

    return refuse


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
        charge_widths(format_spec)
        charge_value(value)
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        charge_value(value)
        return super().convert_field(value, conversion)


_COMPARISONS = (
    *("==", "eq", "equalto", "!=", "ne", "in"),
    *("<", "lt", "lessthan", "<=", "le", ">", "gt", "greaterthan", ">=", "ge"),
)


@jinja2.pass_context
def _written(context: Context, value: Any) -> Any:
    charge_value(value)
    return value


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, finalize=_written, **options)  # no constant folding while parsing
        del self.globals["lipsum"]
        for name in _COMPARISONS:
            test: Any = self.tests[name]
            self.tests[name] = _limited_test(test)
        self.filters = {
            name: _limited_filter(name, function) if name in FILTERS else _refused_filter(name)
            for name, function in self.filters.items()
        }
        self.filters |= {"_tick": _tick, "_concat": _concat, "_slice": _slice, "_whole": _whole}

    def replace_filter(self, name: str, function: Callable[..., Any]) -> None:
        self.filters[name] = _limited_filter(name, function)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _ChargeInserter().visit(super()._parse(source, name, filename))
        tree.set_environment(self)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in "+-":
            result = checked_integer(left + right if operator == "+" else left - right)
            charge_result(result)
            return result
        if operator == "%":
            if isinstance(left, (str, bytes)):
                charge_percent(left, right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
            if bits > MAX_BITS:
                raise CostExceeded("a number is too large")
        elif operator == "*":
            charge(length(left) * right if isinstance(right, int) else length(right) * left)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        charge(1 + len(args))
        if isinstance(__obj, BuiltinMethodType):
            args = charge_method(__obj, args, kwargs)
        elif not isinstance(__obj, Macro):  # a macro passes its arguments on without reading them
            for value in (*args, *kwargs.values()):
                charge_value(value)
        return super().call(__context, __obj, *args, **kwargs)

    def getitem(self, obj: Any, argument: Any) -> Any:
        charge(1)  # a filter's long path of attributes looks up every part
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
