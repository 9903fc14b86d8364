"""Convert a chat request to its prompt: choose the template, render the messages, add a prefill, describe the reply.

`ChatFormat` is created once the model is loaded and lives as long as the worker; it keeps no reference to the model.
Rendering is pure.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from llama_corral.common.base.errors import InvalidRequest, NotSupported
from msgspec import Struct, field
from msgspec.structs import asdict, replace

from ..engine.messages import PromptText
from ..grammar.work import Budget, TakesLong
from .constraints.response_format import completion_fields, plain_fields
from .constraints.tool_grammar import GrammarContext, call_rule, tool_fields
from .content import join_parts, marker_in
from .formats.channel_marks import EVERYONE
from .formats.formats import AnswerFormat, Span, first_mark
from .parsing.reply import PLAIN, ReplyFormat
from .quoting import NO_SPECIAL_TOKENS, Quotation, SpecialTokens, SpellingSource, WrittenText
from .request import ChatRequest
from .template.capabilities import Capabilities, preserve_reasoning
from .template.template import CHATML, MAX_SECONDS, ChatTemplate, TemplateCostly, TemplateError, TemplateSlow
from .variant import TemplateVariant, added, before_thoughts, examined

log = logging.getLogger("corral.worker")

QUICK_SECONDS = 0.1  # rendering time limit on the event loop's thread
SOON_SECONDS = 0.1  # on a thread that other requests wait for

ApplyBuiltin = Callable[[str, Sequence[tuple[str, str]], bool], str | None]
"""llama.cpp's built-in renderer of well-known templates: (name or text, [(role, content)…], add_generation_prompt)."""


Write = Callable[[bool], WrittenText]
"""Renders a conversation: add_generation_prompt → text."""


class Effort(Struct, frozen=True):
    """How long a rendering may take. `given_up` returns True once the client has disconnected; None: never.

    `soon`: the grammar must not take long either.
    """

    seconds: float = MAX_SECONDS
    quick: bool = False
    given_up: Callable[[], bool] | None = None
    soon: bool = False

    def budget(self) -> Budget:
        """Return a budget for the grammar."""
        return Budget(given_up=self.given_up, soon=self.soon)


QUICK = Effort(QUICK_SECONDS, quick=True, soon=True)


class RenderedPrompt(Struct, frozen=True):
    text: str
    generation_prompt: str  # the end of `text` that opens the answer
    prefill: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)  # additional fields of the completion request
    reply: ReplyFormat = PLAIN
    quoted: tuple[PromptText, ...] = ()  # `text` in parts, if messages in it spell special tokens

    @property
    def parts(self) -> tuple[PromptText, ...]:
        return self.quoted or (PromptText(self.text),)


class ChatFormat:
    """Render prompts with a model's chat templates.

    The constructor raises TemplateError for an invalid one. One that costs too much makes only chats unavailable.
    """

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
        parses: bool = True,
    ) -> None:
        if not source or source == "chatml":
            source = tool_source or CHATML
        self.source = source
        self.tool_source = tool_source if jinja else None
        self._bos = bos_text if add_bos else ""
        self._eos = eos_text if add_eos else ""
        self._tokens = (bos_text, eos_text)
        self._parses = parses
        self._fault = ""
        self._main = self._examined_main(source) if jinja else None
        self._for_tools = self._tool_variant()
        self.capabilities = self._main.capabilities if self._main else Capabilities()
        self._special_tokens: SpecialTokens | None = None

    def _examined_main(self, source: str) -> TemplateVariant | None:
        try:
            return self._examined(source)
        except TemplateCostly as error:
            self._fault = str(error)
            log.warning("chats are not available with this model: %s", error)
            return None

    def _examined(self, source: str) -> TemplateVariant:
        return examined(ChatTemplate(source, *self._tokens), parses=self._parses)

    def _tool_variant(self) -> TemplateVariant | None:
        if not self.tool_source or self.tool_source == self.source:
            return self._main
        try:
            return self._examined(self.tool_source)
        except TemplateError as error:
            log.warning("the model's tool template is invalid and not used: %s", error)
            return self._main

    @property
    def _thinks(self) -> bool:
        """The default of `enable_thinking`: False if no reasoning format was detected in the template."""
        form = self._main.form if self._main and self._parses else None
        return form is None or form.reasoning is not None

    @property
    def knows_special_tokens(self) -> bool:
        return self._special_tokens is not None

    def special_tokens(self, vocab: SpellingSource) -> SpecialTokens:
        """Return the tokens that a message must not contain by spelling them; slow until `knows_special_tokens`.

        These are the vocabulary's control tokens, and user-defined tokens with which this template begins a turn.
        """
        if self._special_tokens is None:
            self._special_tokens = SpecialTokens.of(vocab, self._turn_starts())
        return self._special_tokens

    def _turn_starts(self) -> list[str]:
        """Return the texts that the templates write before a user's and before the model's message."""
        variants = [self._main] if self._for_tools is self._main else [self._main, self._for_tools]
        return [text for variant in variants if variant for text in variant.turn_starts()]

    def render(
        self,
        request: ChatRequest,
        builtin: ApplyBuiltin,
        special: SpecialTokens = NO_SPECIAL_TOKENS,
        given_up: Callable[[], bool] | None = None,
        *,
        soon: bool = False,
    ) -> RenderedPrompt:
        """Return the prompt. Raises InvalidRequest or NotSupported; with `soon` TakesLong for more than 0.1 s of work.

        `special`: the tokens whose spelling is ordinary text in messages from users and tools. `given_up`: see Effort.
        """
        effort = Effort(SOON_SECONDS, given_up=given_up, soon=True) if soon else Effort(given_up=given_up)
        try:
            return self._render(request, builtin, special, effort)
        except TemplateSlow as error:
            if soon:
                raise TakesLong from None
            raise InvalidRequest(str(error)) from None
        except TemplateError as error:
            raise InvalidRequest(str(error)) from None

    def render_quickly(
        self, request: ChatRequest, builtin: ApplyBuiltin, special: SpecialTokens = NO_SPECIAL_TOKENS
    ) -> RenderedPrompt | None:
        """Return the prompt, or None if it takes long or writes much: then call `render` on another thread."""
        try:
            return self._render(request, builtin, special, QUICK)
        except (TemplateSlow, TakesLong):
            return None
        except TemplateError as error:
            raise InvalidRequest(str(error)) from None

    def _render(
        self, request: ChatRequest, builtin: ApplyBuiltin, special: SpecialTokens, effort: Effort
    ) -> RenderedPrompt:
        if self._fault:
            raise NotSupported(f"chats are not available with this model: {self._fault}")
        variant = self._for_tools if request.tools.offered else self._main
        source = variant.template.source if variant else self.source
        inputs = [request.messages, request.tools.shown, request.variables, source, self._tokens]
        cuts = variant.template.cuts_at if variant else ()
        quotation = Quotation(special, marker_in(request.messages), lambda: inputs, cuts)
        if variant:
            return self._jinja(variant, request, quotation, effort)
        return self._plain(request, builtin, quotation, effort)

    # -- Jinja ---------------------------------------------------------------------------------------------------------

    def _jinja(
        self, variant: TemplateVariant, request: ChatRequest, quotation: Quotation, effort: Effort
    ) -> RenderedPrompt:
        write = self._writer(variant, request, quotation, effort)
        written, written_closed = write(True), write(False)
        opened, closed = written.text, written_closed.text
        generation_prompt, form = added(closed, opened), variant.form
        if request.continued is not None:
            text, start = opened[: len(opened) - len(generation_prompt)], before_thoughts(generation_prompt, form)
            prefill = _continuation(request, form)
            template_part = start if form.reasoning else generation_prompt
            prompt = RenderedPrompt(text + template_part + prefill, template_part + prefill, prefill)
            opening = prefill
        else:
            written = written if request.add_generation_prompt else written_closed
            prompt = RenderedPrompt(written.text, generation_prompt)
            template_part = before_thoughts(generation_prompt, form)
            opening = generation_prompt[len(template_part) :] if request.add_generation_prompt else ""
        reply = ReplyFormat(
            form=form,
            tools=request.tools.usable,
            opening=opening,
            separate_reasoning=request.separate_reasoning,
            wrapped_json=request.response_format is not None,
            shows_opening=request.continued is None or request.shows_prefill,
            only_calls=request.tools.required,
        )
        context = GrammarContext(
            template_part,
            opening,
            form.reasoning,
            turn=form.turn,
            content=form.before_content,
            calls=form.before_calls,
            next_calls=form.between_calls,
            wakes=form.style != "channels",
        )
        fields = _fields(request, variant, context, prompt.generation_prompt, effort.budget())
        return replace(prompt, reply=reply, fields=fields, quoted=_quoted(request, quotation, written, prompt))

    def _writer(self, variant: TemplateVariant, request: ChatRequest, quotation: Quotation, effort: Effort) -> Write:
        messages = variant.adapted(request.messages, quotation)
        turn_end, turn_start = variant.form.reopens

        def write(add_generation_prompt: bool) -> WrittenText:
            text = variant.template.render(
                messages,
                add_generation_prompt=add_generation_prompt,
                tools=request.tools.shown,
                variables={"enable_thinking": self._thinks, **_with_aliases(request.variables)},
                seconds=effort.seconds,
                quick=effort.quick,
                given_up=effort.given_up,
            )
            if turn_end and add_generation_prompt and text.endswith(turn_end):
                text += turn_start
            return quotation.shown(self._without_specials(text))

        return write

    def _without_specials(self, text: str) -> str:
        """Remove BOS and EOS that the template wrote if the tokenizer adds them, too."""
        if self._bos and text.startswith(self._bos):
            text = text[len(self._bos) :]
        if self._eos and text.endswith(self._eos):
            text = text[: -len(self._eos)]
        return text

    # -- without Jinja -------------------------------------------------------------------------------------------------

    def _plain(
        self, request: ChatRequest, builtin: ApplyBuiltin, quotation: Quotation, effort: Effort
    ) -> RenderedPrompt:
        if request.tools.offered:
            raise NotSupported("tools param requires --jinja flag")
        if request.tools.choice != "auto":
            raise NotSupported("tool_choice param requires --jinja flag")
        messages = quotation.messages(request.messages)
        chat = [(message["role"], join_parts(message["content"], "\n")) for message in messages]

        def write(add_generation_prompt: bool) -> WrittenText:
            text = builtin(self.source, chat, add_generation_prompt)
            if text is None:
                raise TemplateError("this custom template is not supported, try using --jinja")
            return quotation.shown(text)

        opened, closed = write(True), write(False)
        prefill = join_parts(request.continued["content"], "\n\n") if request.continued else ""
        written = opened if request.continued or request.add_generation_prompt else closed
        form = request.response_format
        fields = plain_fields(form, effort.budget()) if form else {}
        reply = ReplyFormat(opening=prefill, shows_opening=request.shows_prefill)
        generation_prompt = added(closed.text, opened.text) + prefill
        prompt = RenderedPrompt(written.text + prefill, generation_prompt, prefill, fields, reply)
        return replace(prompt, quoted=_quoted(request, quotation, written, prompt))

    def capabilities_json(self) -> dict[str, bool]:
        return asdict(self.capabilities)


def _quoted(
    request: ChatRequest, quotation: Quotation, written: WrittenText, prompt: RenderedPrompt
) -> tuple[PromptText, ...]:
    """Return the prompt in parts if messages spell special tokens. `written`: what the template wrote of it."""
    if request.continued is None:
        return quotation.split(written)
    end = join_parts(request.continued.get(request.continues, ""), "\n\n")
    start = len(prompt.text) - len(end) if prompt.text.endswith(end) else len(prompt.text)
    quoted = [at for at in written.quoted if at < start]
    quoted += [start + at for at in quotation.positions(end, request.continued["role"])]
    return quotation.split(WrittenText(prompt.text, tuple(quoted)))


def _fields(
    request: ChatRequest, variant: TemplateVariant, context: GrammarContext, generation_prompt: str, budget: Budget
) -> Mapping[str, Any]:
    fields: dict[str, Any] = {"generation_prompt": generation_prompt}
    fields["message_delimiters"] = [{"role": found.role, "delimiter": found.text} for found in variant.delimiters]
    if variant.form.marks:
        fields["preserved_tokens"] = list(variant.form.marks)
    if variant.form.reasoning:
        fields["reasoning_budget_start_tag"] = variant.form.reasoning.start.strip()
        fields["reasoning_budget_end_tags"] = _thought_ends(variant.form, variant.form.reasoning)
    tools = request.tools
    calls = variant.form.calls if tools.usable else None
    if tools.required and calls is None:
        raise InvalidRequest("Field 'tool_choice': this chat template does not support tool calls")
    parallel = variant.capabilities.supports_parallel_tool_calls if tools.parallel is None else tools.parallel
    parallel = parallel and not tools.only
    if request.response_format is not None and not tools.required:
        rule = partial(call_rule, calls, tools.usable, context, parallel=parallel) if calls else None
        fields |= completion_fields(request.response_format, context, rule, budget)
    elif calls is not None:
        fields |= tool_fields(calls, tools.usable, context, budget, required=tools.required, parallel=parallel)
    return fields


def _thought_ends(form: AnswerFormat, thoughts: Span) -> list[str]:
    """Return the end marks of reasoning. The first one is inserted when the reasoning budget is used up."""
    mark = first_mark(form.calls) if form.calls and form.calls_end_reasoning else ""
    return [end for end in (thoughts.end.strip(), mark) if end]


def _continuation(request: ChatRequest, form: AnswerFormat) -> str:
    """Return the text of the message to continue, in the model's format."""
    message = request.continued or {}
    content = join_parts(message.get("content", ""), "\n\n")
    tags, thought = form.reasoning, message.get("reasoning_content", "")
    if form.style == "recipients":
        return f"{EVERYONE}\n{content}"
    if not tags or not tags.start:
        return content
    begin, end, behind = form.spacing
    rest = f"{end}{tags.end}{behind}{form.turn}{form.before_content}{content}"
    return f"{tags.start}{begin}{thought}{rest if request.continues == 'content' else ''}"


def _with_aliases(variables: Mapping[str, Any]) -> Mapping[str, Any]:
    """Add the alternative names that templates use for the same variable."""
    spelled = dict(variables)
    if isinstance(keep := variables.get("preserve_reasoning"), bool):
        spelled.update(preserve_reasoning(keep))
    if isinstance(effort := variables.get("reasoning_effort"), str) and effort:
        spelled["reasoning_strength"] = effort
    return spelled
