"""Read the conversation of a chat request: messages, tools, the message to continue, how to parse the answer.

`read_chat` checks a request's body and applies the server's defaults. Sampling fields are not read here. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from llama_corral.common.base.errors import InvalidRequest
from llama_corral.common.base.json_encoding import encode_json
from llama_corral.common.web.json_fields import Fields, wrong_type
from msgspec import Struct, field

from ..media.sources import MediaSource
from .constraints.response_format import ResponseFormat, read_response_format
from .content import ContentReader, has_media, join_parts
from .messages import Message, read_messages
from .tools import NO_TOOLS, ToolSet, read_tools

SYSTEM_ROLES = ("system", "developer")
MAX_TOP_LOGPROBS = 20
REASONING_FORMATS = ("none", "auto", "deepseek", "deepseek-legacy")

Continued = Literal["content", "reasoning_content"]


class ChatRequest(Struct, frozen=True):
    messages: list[Message]
    add_generation_prompt: bool
    continued: Message | None  # the message that the answer continues; not in `messages`
    shows_prefill: bool  # True if the stream begins with the continued text
    variables: Mapping[str, Any]
    response_format: ResponseFormat | None = None
    tools: ToolSet = NO_TOOLS
    continues: Continued = "content"
    separate_reasoning: bool = True
    media: tuple[MediaSource, ...] = ()  # files, in the order of their markers in the messages

    @property
    def n_characters(self) -> int:
        """Estimate the work of rendering the prompt, in characters."""
        n = len(encode_json(self.tools.shown)) if self.tools.offered else 0
        n += len(encode_json(self.variables)) if self.variables else 0  # may have documents
        for message in self.messages:
            n += len(join_parts(message["content"], "")) + len(message.get("reasoning_content") or "")
            n += len(encode_json(message["tool_calls"])) if message.get("tool_calls") else 0
        return n

    @property
    def has_schema(self) -> bool:
        """True if a grammar must be written, for which a small schema may take as long as a large one."""
        return self.response_format is not None or bool(self.tools.usable)


class ChatDefaults(Struct, frozen=True):
    """Defaults for chat requests from the server's options."""

    prefill_assistant: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)
    reasoning_format: str = "auto"
    media_marker: str = "<__media__>"
    system_prompt: str = ""


def read_chat(body: Mapping[str, Any], defaults: ChatDefaults) -> ChatRequest:
    """Return the checked chat request. Raises InvalidRequest."""
    fields = Fields(body)
    tools = read_tools(fields)
    form = read_response_format(fields)
    if "messages" not in body:
        raise InvalidRequest("'messages' is required")
    contents = ContentReader(defaults.media_marker)
    messages = _with_system_prompt(read_messages(body["messages"], contents), defaults.system_prompt)
    opens = fields.boolean("add_generation_prompt", default=True)
    asked = _continues(body.get("continue_final_message"))
    continues = asked
    if not continues and defaults.prefill_assistant and messages and messages[-1]["role"] == "assistant":
        if len(messages) > 1 and messages[-2]["role"] == "assistant":
            raise InvalidRequest("Cannot have 2 or more assistant messages at the end of the list.")
        continues, opens = "auto", False
    if continues and opens:
        raise InvalidRequest("Cannot set both add_generation_prompt and continue_final_message to true.")
    continued = messages.pop() if continues and messages else None
    if continued and continued["role"] == "assistant" and continued.get("tool_calls"):
        raise InvalidRequest("Cannot continue an assistant message that contains tool calls.")
    if continued and has_media(continued["content"]):
        raise InvalidRequest("Cannot continue a message that contains images, audio or video.")
    return ChatRequest(
        messages=messages,
        add_generation_prompt=opens,
        continued=continued,
        shows_prefill=not asked
        or fields.boolean("echo", default=False),  # a client that set the field already has the text
        variables=_variables(fields, defaults.variables),
        response_format=form,
        tools=tools,
        continues=_continued_part(continues, continued),
        separate_reasoning=fields.string("reasoning_format", default=defaults.reasoning_format) != "none",
        media=tuple(contents.media),
    )


def _with_system_prompt(messages: list[Message], text: str) -> list[Message]:
    if not text or not messages or any(message["role"] in SYSTEM_ROLES for message in messages):
        return messages
    return [{"role": "system", "content": text}, *messages]


def _continues(value: object) -> str:
    """Return "auto", "content" or "reasoning_content"; "" if the last message is not continued."""
    if value is None or isinstance(value, bool):
        return "auto" if value else ""
    if value in ("content", "reasoning_content"):
        return str(value)
    raise wrong_type("continue_final_message", 'boolean, "content" or "reasoning_content"', value)


def _continued_part(continues: str, message: Message | None) -> Continued:
    if continues == "reasoning_content":
        return "reasoning_content"
    thinks = continues == "auto" and message and message.get("reasoning_content")
    return "reasoning_content" if thinks and message and not join_parts(message["content"], "") else "content"


def _variables(fields: Fields, defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    variables = {**defaults, **fields.object("chat_template_kwargs")}
    if isinstance(variables.get("enable_thinking"), str):
        raise InvalidRequest('invalid type for "enable_thinking" (expected boolean, got string)')
    effort = fields.string("reasoning_effort", default="")
    if effort == "none":
        variables.pop("reasoning_effort", None)
        variables["enable_thinking"] = False
    elif effort:
        variables["reasoning_effort"] = effort
    return variables


def probabilities_wanted(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert the chat fields `logprobs` and `top_logprobs` to completion fields; {}: no probabilities.

    `n_probs` 0 means the probabilities of the chosen tokens without alternatives.
    """
    fields = Fields(body)
    _, wanted = fields.find("logprobs")
    if isinstance(wanted, bool) and wanted:
        return {"n_probs": fields.integer("top_logprobs", default=MAX_TOP_LOGPROBS, low=0, high=MAX_TOP_LOGPROBS)}
    if fields.find("top_logprobs")[1]:
        raise InvalidRequest("top_logprobs requires logprobs to be set to true")
    return {}
