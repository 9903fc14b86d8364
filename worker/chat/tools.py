"""Read the tools of a chat request and how they may be used. Pure. Error messages and statuses follow llama-server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.web.json_fields import Fields, json_type, wrong_type
from msgspec import Struct
from msgspec.structs import replace

from ..grammar.work import Budget
from .argument_schemas import FREE, ArgumentSchemas, Texts

Choice = Literal["auto", "none", "required"]
_CHOICES: tuple[Choice, ...] = ("auto", "none", "required")


class FunctionTool(Struct, frozen=True):
    name: str
    description: str
    parameters: Mapping[str, Any]
    shown: Mapping[str, Any]  # the form that the template gets

    def schemas(self, budget: Budget | None = None) -> ArgumentSchemas:
        return ArgumentSchemas(self.parameters, budget)

    def texts(self, argument: str) -> Texts:
        """Return the strings that the argument may be by its schema; any string if it is unknown."""
        schemas = self.schemas()
        properties = schemas.properties(self.parameters)
        return schemas.texts(properties[argument]) if argument in properties else FREE


class ToolSet(Struct, frozen=True):
    offered: tuple[FunctionTool, ...] = ()
    choice: Choice = "auto"
    only: str = ""  # the name of the only function that may be called, exactly once
    parallel: bool | None = None  # None: True if the template supports it
    allowed: tuple[str, ...] | None = None  # the names of the functions that may be called; None: all

    @property
    def required(self) -> bool:
        return self.choice == "required"

    @property
    def usable(self) -> tuple[FunctionTool, ...]:
        """The tools that may be called; the template shows all."""
        if self.choice == "none":
            return ()
        names = (self.only,) if self.only else self.allowed
        return tuple(tool for tool in self.offered if names is None or tool.name in names)

    @property
    def shown(self) -> list[Mapping[str, Any]]:
        return [tool.shown for tool in self.offered]


NO_TOOLS = ToolSet()


def read_tools(fields: Fields) -> ToolSet:
    """Read `tools`, `tool_choice` and `parallel_tool_calls`. Raises InvalidRequest."""
    _, given = fields.find("tools")
    if given is not None and not isinstance(given, list):
        raise wrong_type("tools", "array", given)
    tools = tuple(_read_tool(item) for item in given or ())
    chosen = _read_choice(fields.find("tool_choice")[1])
    if tools and chosen.choice != "none" and fields.find("grammar")[1] is not None:
        raise InvalidRequest("Cannot use custom grammar constraints with tools.")
    for name in (chosen.only, *(chosen.allowed or ())):
        if name and name not in [tool.name for tool in tools]:
            raise InvalidRequest(f"Field 'tool_choice': there is no tool named {name}")
    if chosen.required and not (tools if chosen.allowed is None else chosen.allowed):
        raise InvalidRequest("Field 'tool_choice': a call is required, but there is no tool that may be called")
    _, parallel = fields.find("parallel_tool_calls")
    if parallel is not None:
        parallel = fields.boolean("parallel_tool_calls", default=True)
    return replace(chosen, offered=tools, parallel=parallel)


def _read_choice(value: object) -> ToolSet:
    """Return the choice without the tools. It is a word, a function's name, or a list of allowed tools."""
    if value is None:
        return NO_TOOLS
    if isinstance(value, str):
        for choice in _CHOICES:
            if value == choice:
                return ToolSet(choice=choice)
        raise InvalidRequest(f"Invalid tool_choice: {value}")
    if not isinstance(value, dict):
        raise wrong_type("tool_choice", "string or object", value)
    match value.get("type", "function"):
        case "function":
            return ToolSet(choice="required", only=_function_name(value, "tool_choice"))
        case "allowed_tools":
            return _read_allowed(value.get("allowed_tools"))
        case other:
            raise InvalidRequest(f"Field 'tool_choice.type': must be function or allowed_tools, but is {other!r}")


def _read_allowed(value: object) -> ToolSet:
    if not isinstance(value, dict) or not isinstance(value.get("tools"), list):
        raise InvalidRequest("Field 'tool_choice.allowed_tools': must be an object with 'mode' and a list 'tools'")
    mode = value.get("mode")
    if mode not in ("auto", "required"):
        raise InvalidRequest(f"Field 'tool_choice.allowed_tools.mode': must be auto or required, but is {mode!r}")
    names = [_function_name(tool, f"tool_choice.allowed_tools.tools[{i}]") for i, tool in enumerate(value["tools"])]
    return ToolSet(choice="required" if mode == "required" else "auto", allowed=tuple(names))


def _function_name(value: object, where: str) -> str:
    """Return the name in `{"function": {"name": …}}` or, as in Responses, `{"name": …}`. Raises InvalidRequest."""
    function = value.get("function", value) if isinstance(value, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"Field '{where}': must name a function")
    return name


def _read_tool(item: object) -> FunctionTool:
    if not isinstance(item, dict):
        raise InvalidRequest(f"Field 'tools': entries must be objects, but one is {json_type(item)}")
    if item.get("type") != "function":
        raise InvalidRequest(f"Unsupported tool type: {item.get('type')!r}" if "type" in item else "Missing tool type")
    function = item.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest("Missing tool function name")
    parameters = function.get("parameters")
    if not isinstance(parameters, dict):
        parameters = {}
    description = function.get("description")
    if not isinstance(description, str):
        description = ""
    shown = {
        "type": "function",
        "function": {"name": function["name"], "description": description, "parameters": parameters},
    }
    return FunctionTool(function["name"], description, parameters, shown)
