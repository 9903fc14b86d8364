"""Render a model's chat template: Jinja with the conventions of Hugging Face's tokenizers, in a sandbox.

A template is part of a downloaded file. So it can read only plain data, cannot change its input, and has limits of time
and memory (`sandbox`, `limits`). It converts messages to a prompt's text and does not know requests.
"""

from __future__ import annotations

import ast
import json
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import markupsafe
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from .limits import CostExceeded, CostMeter, TimeExceeded, charge_value, metered
from .sandbox import LimitedEnvironment

CHATML = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\n' -}}
{%- endif -%}"""
"""The template of models without one."""


MAX_SECONDS = 5.0  # rendering a prompt usually takes milliseconds
MAX_SOURCE = 1 << 17  # characters; the longest known one has 30,000. Parsing takes some microseconds for each
MAX_DATE_CHARACTERS = 100


class TemplateError(Exception):
    """The template cannot be parsed, fails, or refuses the messages; then the message contains its text."""


class TemplateSlow(TemplateError):
    """Rendering exceeded its time limit."""


class TemplateCostly(TemplateError):
    """The template can be parsed, but already the smallest conversations exceed a limit."""


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks assistant text for training; here only its body is rendered."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Missing(jinja2.Undefined):
    """An undefined variable. Added to a text it is empty, as in llama-server: templates rely on it."""

    def __add__(self, other: Any) -> Any:
        return other if isinstance(other, str) else super().__add__(other)

    def __radd__(self, other: Any) -> Any:
        return other if isinstance(other, str) else super().__radd__(other)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON without ASCII and HTML escapes, unlike jinja2: models are not trained on them."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, default=_listed
    )


def _listed(value: object) -> list[Any]:
    """Convert an iterator to a list: filters like `map` return generators, which templates use as lists."""
    if isinstance(value, Iterator):
        items = list(value)
        charge_value(items)
        return items
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _escaped(value: object) -> str:
    """Escape HTML. The result is an ordinary text, which does not escape the texts that are added to it."""
    return str(markupsafe.escape(value))


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.exceptions.TemplateError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form[:MAX_DATE_CHARACTERS])


_CUT_AT = re.compile(r"""\b(?:replace|r?split|r?partition)\(\s*('(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")""")
_CHANGES = ("append", "pop")


class _MutableListEnvironment(LimitedEnvironment):
    """Allows `append` and `pop` of lists, which some templates need: render with copies of the input."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return (isinstance(obj, list) and attr in _CHANGES) or super().is_safe_attribute(obj, attr, value)


def _environment(sandbox: type[LimitedEnvironment]) -> jinja2.Environment:
    environment = sandbox(
        trim_blocks=True, lstrip_blocks=True, undefined=_Missing, extensions=[_GenerationTag, loopcontrols]
    )
    environment.replace_filter("tojson", _tojson)
    environment.replace_filter("safe", str)  # Markup would escape the text that is added to it
    environment.replace_filter("escape", _escaped)
    environment.replace_filter("e", _escaped)
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


ENVIRONMENT = _environment(LimitedEnvironment)
_CHANGING = _environment(_MutableListEnvironment)


def _cut_texts(source: str) -> frozenset[str]:
    found = set()
    for match in _CUT_AT.finditer(source[:MAX_SOURCE]):
        try:
            found.add(str(ast.literal_eval(match[1])))
        except (ValueError, SyntaxError):
            continue  # not valid in Jinja, either
    return frozenset(filter(None, found))


class ChatTemplate:
    """A parsed template, immutable outside of `examined`; rendering is thread-safe. Raises TemplateError."""

    def __init__(self, source: str, bos_text: str = "", eos_text: str = "") -> None:
        self.source = source
        self._tokens = {"bos_token": bos_text, "eos_token": eos_text}
        self._changes = any(f".{name}(" in source for name in _CHANGES)
        self._seconds_left = math.inf
        self._wrote_too_much = False
        self.cuts_at = _cut_texts(source)
        """Texts that the template may remove from a message or replace in it."""
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"chat template cannot be parsed: it is longer than {MAX_SOURCE} characters")
        try:
            self._template = (_CHANGING if self._changes else ENVIRONMENT).from_string(source)
        except (jinja2.TemplateError, SyntaxError, ValueError, OverflowError) as error:
            raise TemplateError(f"chat template cannot be parsed: {error}") from None
        except (RecursionError, MemoryError):
            raise TemplateError("chat template cannot be parsed: it is nested too deeply") from None

    @contextmanager
    def examined(self) -> Iterator[None]:
        """Limit all renderings in the block together to the time of one; none may write too much.

        Raises TemplateCostly at the end. Only for use directly after construction: it is not thread-safe.
        """
        self._seconds_left, self._wrote_too_much = MAX_SECONDS, False
        try:
            yield
        finally:
            left, self._seconds_left = self._seconds_left, math.inf
        if left <= 0:
            raise TemplateCostly("chat template takes too long for the smallest conversations")
        if self._wrote_too_much:
            raise TemplateCostly("chat template writes too much for the smallest conversations")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        seconds: float = MAX_SECONDS,
        quick: bool = False,
        given_up: Callable[[], bool] | None = None,
    ) -> str:
        """Return the prompt. Raises TemplateSlow after `seconds` or if `given_up` returns True, and TemplateError.

        `quick`: raise TemplateSlow also for a template that writes much, because one operation could take long.
        """
        now = datetime.now()
        context: dict[str, Any] = {
            **self._tokens,
            "messages": deepcopy(messages) if self._changes else messages,
            "datetime": now.strftime("%b %d %Y"),
            "date_string": now.strftime("%d %b %Y"),
            **(variables or {}),
        }
        if add_generation_prompt:
            context["add_generation_prompt"] = True
        if tools:
            context["tools"] = deepcopy(tools) if self._changes else tools
        begun = time.monotonic()
        try:
            with metered(CostMeter(min(seconds, self._seconds_left), context, quick=quick, given_up=given_up)):
                return self._template.render(context)
        except TimeExceeded as error:
            raise TemplateSlow(f"chat template failed: {error}") from None
        except CostExceeded as error:
            self._wrote_too_much = True
            raise TemplateError(f"chat template failed: {error}") from None
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise TemplateError(f"chat template failed: {error}") from None
        except RecursionError:
            raise TemplateError("chat template failed: it calls itself without end") from None
        except MemoryError:
            raise TemplateError("chat template failed: it needs too much memory") from None
        finally:
            self._seconds_left -= time.monotonic() - begun
