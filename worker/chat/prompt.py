"""From a chat request to the text of its prompt: which template, which messages, what is continued.

`ChatFormat` is made once a model is loaded and lives as long as the worker; it holds nothing of the model's memory.
`read_chat` checks a request, `ChatFormat.render` writes its prompt; both are pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ...presets.errors import InvalidRequest, NotSupported
from ..fields import Fields, wrong_type
from .capabilities import Capabilities, preserve_reasoning, probe
from .messages import Message, join_parts, read_messages, shaped
from .response_format import ResponseFormat, completion_fields, plain_fields, read_response_format
from .template import CHATML, ChatTemplate, TemplateError

ApplyBuiltin = Callable[[str, Sequence[tuple[str, str]], bool], str | None]
"""llama.cpp's own renderings of well-known templates: (name or text, (role, content)…, add_generation_prompt)."""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    messages: list[Message]
    add_generation_prompt: bool
    continued: Message | None  # a message that the answer goes on with; not among `messages`
    shows_prefill: bool  # the stream begins with its text
    variables: Mapping[str, Any]
    response_format: ResponseFormat | None = None


@dataclass(frozen=True, slots=True)
class RenderedPrompt:
    text: str
    generation_prompt: str  # the part of it that opens the answer
    prefill: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)  # of the completion, beside what the request says itself
    wrapped_json: bool = False  # the answer is JSON, with more around it


@dataclass(frozen=True)
class ChatDefaults:
    """What the server's options say about chat."""

    prefill_assistant: bool = True
    variables: Mapping[str, Any] = field(default_factory=dict)


class ChatFormat:
    """Raises TemplateError when the template cannot be parsed."""

    def __init__(
        self,
        source: str | None,
        *,
        tool_source: str | None = None,
        bos_text: str = "",
        eos_text: str = "",
        add_bos: bool = False,
        add_eos: bool = False,
        jinja: bool = True,
    ) -> None:
        if not source or source == "chatml":
            source = tool_source or CHATML
        self.source = source
        self.tool_source = tool_source if jinja else None  # for show only, until tools are rendered
        self._bos = bos_text if add_bos else ""
        self._eos = eos_text if add_eos else ""
        self._template = ChatTemplate(source, bos_text, eos_text) if jinja else None
        self.capabilities = probe(self._template) if self._template else Capabilities()

    def render(self, request: ChatRequest, builtin: ApplyBuiltin) -> RenderedPrompt:
        try:
            prompt = self._render(request, builtin)
        except TemplateError as error:
            raise InvalidRequest(str(error)) from None
        return self._constrained(prompt, request.response_format)

    def _constrained(self, prompt: RenderedPrompt, form: ResponseFormat | None) -> RenderedPrompt:
        if form is None:
            return prompt
        if self._template is None:
            return replace(prompt, fields=plain_fields(form))
        opening = prompt.generation_prompt.removesuffix(prompt.prefill)
        fields = completion_fields(form, opening, prompt.generation_prompt)
        return replace(prompt, fields=fields, wrapped_json=True)

    def _render(self, request: ChatRequest, builtin: ApplyBuiltin) -> RenderedPrompt:
        write = self._jinja(request) if self._template else self._builtin(request, builtin)
        opened = write(True)
        if request.continued is not None:
            prefill = join_parts(request.continued["content"], "\n\n")
            return RenderedPrompt(opened + prefill, _added(write(False), opened) + prefill, prefill)
        closed = write(False)
        return RenderedPrompt(opened if request.add_generation_prompt else closed, _added(closed, opened))

    def _jinja(self, request: ChatRequest) -> Callable[[bool], str]:
        template = self._template
        assert template is not None
        keep_developer = "<|channel|>" in self.source  # gpt-oss knows both roles
        messages = shaped(request.messages, self.capabilities, keep_developer=keep_developer)

        def write(add_generation_prompt: bool) -> str:
            text = template.render(
                messages, add_generation_prompt=add_generation_prompt, variables=_spelled_out(request.variables)
            )
            return self._without_specials(text)

        return write

    def _builtin(self, request: ChatRequest, builtin: ApplyBuiltin) -> Callable[[bool], str]:
        chat = [(message["role"], join_parts(message["content"], "\n")) for message in request.messages]

        def write(add_generation_prompt: bool) -> str:
            text = builtin(self.source, chat, add_generation_prompt)
            if text is None:
                raise TemplateError("this custom template is not supported, try using --jinja")
            return text

        return write

    def _without_specials(self, text: str) -> str:
        """Tokenizing adds these by itself: a template that writes them would double them."""
        if self._bos and text.startswith(self._bos):
            text = text[len(self._bos) :]
        if self._eos and text.endswith(self._eos):
            text = text[: -len(self._eos)]
        return text

    def capabilities_json(self) -> dict[str, bool]:
        return asdict(self.capabilities)


def _added(closed: str, opened: str) -> str:
    """What `opened` has beyond the beginning that both share."""
    shared = 0
    for a, b in zip(closed, opened, strict=False):
        if a != b:
            break
        shared += 1
    return opened[shared:]


def _spelled_out(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Templates ask for the same thing under different names."""
    spelled = dict(variables)
    if isinstance(keep := variables.get("preserve_reasoning"), bool):
        spelled.update(preserve_reasoning(keep))
    if isinstance(effort := variables.get("reasoning_effort"), str) and effort:
        spelled["reasoning_strength"] = effort
    return spelled


def read_chat(body: Mapping[str, Any], defaults: ChatDefaults) -> ChatRequest:
    """The chat half of a request; its sampling half is `params`' business."""
    fields = Fields(body)
    _refuse_later_fields(fields)
    form = read_response_format(fields)
    if "messages" not in body:
        raise InvalidRequest("'messages' is required")
    messages = read_messages(body["messages"])
    opens = fields.boolean("add_generation_prompt", default=True)
    continues = asked = _continues(body.get("continue_final_message"))
    if not continues and defaults.prefill_assistant and messages and messages[-1]["role"] == "assistant":
        if len(messages) > 1 and messages[-2]["role"] == "assistant":
            raise InvalidRequest("Cannot have 2 or more assistant messages at the end of the list.")
        continues, opens = True, False
    if continues and opens:
        raise InvalidRequest("Cannot set both add_generation_prompt and continue_final_message to true.")
    continued = messages.pop() if continues and messages else None
    if continued and continued["role"] == "assistant" and continued.get("tool_calls"):
        raise InvalidRequest("Cannot continue an assistant message that contains tool calls.")
    shows = not asked or fields.boolean("echo", default=False)  # who asked for it knows the text already
    return ChatRequest(messages, opens, continued, shows, _variables(fields, defaults.variables), form)


def _continues(value: object) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if value == "content":
        return True
    if value == "reasoning_content":
        raise NotSupported("Field 'continue_final_message': reasoning cannot be continued yet")
    raise wrong_type("continue_final_message", 'boolean or "content"', value)


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


def _refuse_later_fields(fields: Fields) -> None:
    _, tools = fields.find("tools")
    if tools is not None and not isinstance(tools, list):
        raise wrong_type("tools", "array", tools)
    _, choice = fields.find("tool_choice")
    if isinstance(choice, str) and choice not in ("auto", "none", "required"):
        raise InvalidRequest(f"Invalid tool_choice: {choice}")
    if tools:
        raise NotSupported("Field 'tools' is not supported yet")


def probabilities_wanted(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Chat's `logprobs` and `top_logprobs` as the completion fields they stand for."""
    fields = Fields(body)
    _, wanted = fields.find("logprobs")
    if isinstance(wanted, bool) and wanted:
        return {"n_probs": fields.integer("top_logprobs", default=20, low=0)}
    if fields.find("top_logprobs")[1] is not None:
        raise InvalidRequest("top_logprobs requires logprobs to be set to true")
    return {}
