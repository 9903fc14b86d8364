"""`/infill`: generates the text between a prefix and a suffix, with other files as context.

The answer has the format of `/completion`. The prompt is built from the model's fill-in-the-middle tokens, in the order
that code models are trained on: [repository, files,] prefix, suffix, middle. With `--spm-infill`: suffix, prefix,
middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web
from llama_corral.common.base.errors import InvalidRequest, NotSupported
from llama_corral.common.web.json_fields import Fields
from llama_corral.presets.context_shape import context_shape
from msgspec import Struct

from ..engine.runner import LoadedModel, Vocab
from .answers.native import Native
from .completions import answer_prompts
from .request.params import params_of
from .request.prompts import Prompt, n_characters, tokenize_mixed
from .request.reading import PromptReader
from .serving import WorkerContext, begin_use
from .variants import context_of

REPOSITORY = "myproject\n"
FILE = "filename\n"
"""The same placeholder names as in llama-server, for names that the request does not give."""
UNNAMED = "tmp"
CHARACTERS_PER_TOKEN = 32
"""More than the tokens of any text have on average."""
SNIPPET = "\n\n--- snippet ---\n\n"
"""Separator between files for vocabularies without a file separator token."""


async def infill(request: web.Request) -> web.StreamResponse:
    worker = context_of(request)
    async with worker.engine.use() as loaded:
        check_vocabulary(loaded.vocab)  # before the body is read
        body = await begin_use(request)
        tokens = await infill_tokens(worker, loaded, body)
        params = await params_of(body, worker.model.defaults, loaded)
        return await answer_prompts(request, worker, loaded, [Prompt(tokens)], params, Native)


async def infill_tokens(worker: WorkerContext, loaded: LoadedModel, body: dict[str, Any]) -> list[int]:
    """Return the infill prompt for the request `body`. The model must have passed `check_vocabulary`."""
    room = _infill_budget(worker, loaded.info.n_ctx)
    parts = shortened(_read_parts(body), room)
    spm = worker.settings.endpoints.spm_infill
    reader = PromptReader(loaded.vocab, loaded.n_ctx)
    return await reader.run(
        parts.n_characters, lambda: infill_prompt(parts, loaded.vocab, room, spm=spm, reader=reader)
    )


def check_vocabulary(vocab: Vocab) -> None:
    tokens = {"prefix": vocab.fim_pre, "suffix": vocab.fim_suf, "middle": vocab.fim_mid}
    if missing := "".join(f"{name} token is missing. " for name, token in tokens.items() if token < 0):
        raise NotSupported(f"Infill is not supported by this model: {missing}")


# -- the request -----------------------------------------------------------------------------------------------------


class ContextFile(Struct, frozen=True):
    name: str
    text: str


class InfillParts(Struct, frozen=True):
    """The parsed request. `prefix` and `suffix` are each a text, or an array of texts and tokens."""

    prefix: object
    suffix: object
    prompt: str  # the beginning of the middle
    files: tuple[ContextFile, ...]

    @property
    def n_characters(self) -> int:
        return sum(map(n_characters, (self.prefix, self.suffix, self.prompt, [file.text for file in self.files])))


def _read_parts(body: dict[str, Any]) -> InfillParts:
    if not isinstance(body.get("prompt"), str | None):
        raise InvalidRequest('"prompt" must be a string')
    for name in ("input_prefix", "input_suffix"):
        if body.get(name) is None:
            raise InvalidRequest(f'"{name}" is required')
    files = body.get("input_extra")
    if files is None:
        files = []
    if not isinstance(files, list):
        raise InvalidRequest('"input_extra" must be an array of {"filename": string, "text": string}')
    prompt = Fields(body).string("prompt", default="")
    return InfillParts(body["input_prefix"], body["input_suffix"], prompt, tuple(map(_read_file, files)))


def _read_file(chunk: object) -> ContextFile:
    if not isinstance(chunk, dict) or not isinstance(chunk.get("text"), str):
        raise InvalidRequest('extra_context chunk must contain a "text" field with a string value')
    name = chunk.get("filename", UNNAMED)
    if not isinstance(name, str):
        raise InvalidRequest('extra_context chunk\'s "filename" field must be a string')
    return ContextFile(name, chunk["text"])


# -- the prompt ------------------------------------------------------------------------------------------------------


class InfillBudget(Struct, frozen=True):
    """Token limits. Prefix, suffix and middle share `n_batch`, three quarters of it for the prefix; files `n_files`."""

    n_batch: int
    n_files: int


def _infill_budget(worker: WorkerContext, n_ctx: int) -> InfillBudget:
    """Compute the limits as llama-server does: with the server's `--n-predict`, not the request's.

    The value -1 (no limit) is used as the number -1, also as in llama-server.
    """
    settings = worker.settings
    n_batch = context_shape(settings).n_batch
    return InfillBudget(n_batch, max(0, n_ctx - n_batch - 2 * settings.context.n_predict))


def shortened(parts: InfillParts, room: InfillBudget) -> InfillParts:
    """Cut off text that is so far from the gap that it would be truncated after it is tokenized."""
    near, far = CHARACTERS_PER_TOKEN * room.n_batch, CHARACTERS_PER_TOKEN * room.n_files
    prefix = parts.prefix[-near:] if isinstance(parts.prefix, str) else parts.prefix
    suffix = parts.suffix[:near] if isinstance(parts.suffix, str) else parts.suffix
    files: list[ContextFile] = []
    for file in reversed(parts.files):
        if far <= 0:
            break
        files.append(ContextFile(file.name[-far:], file.text[-far:]))
        far -= len(file.text) + len(file.name) + 1
    return InfillParts(prefix, suffix, parts.prompt, tuple(reversed(files)))


def infill_prompt(
    parts: InfillParts, vocab: Vocab, room: InfillBudget, *, spm: bool, reader: PromptReader | None = None
) -> list[int]:
    """Return the prompt's tokens. Too long parts are truncated: prefix and files at the start, suffix at the end.

    `reader`: tokenizes the texts within limits; None: without.
    """
    texts = reader or PromptReader(vocab)
    prefix = tokenize_mixed(parts.prefix, texts, add_special=False, parse_special=False)
    suffix = tokenize_mixed(parts.suffix, texts, add_special=False, parse_special=False)
    prompt = texts.tokenize(parts.prompt, add_special=False, parse_special=True)
    quarter = room.n_batch // 4
    before = [vocab.fim_pre, *_last(prefix, 3 * quarter), *prompt]
    after = [vocab.fim_suf, *suffix[: max(0, quarter - (2 + len(prompt)))]]
    first, second = (after, before) if spm else (before, after)
    bos = [vocab.bos] if vocab.add_bos else []
    return [*_last(_context(parts.files, vocab, texts), room.n_files), *bos, *first, *second, vocab.fim_mid]


def _context(files: Sequence[ContextFile], vocab: Vocab, texts: PromptReader) -> list[int]:
    tokens = [vocab.fim_rep, *vocab.tokenize(REPOSITORY)] if vocab.fim_rep >= 0 else []
    for file in files:
        if vocab.fim_sep >= 0:
            tokens += [vocab.fim_sep, *texts.tokenize(file.name + "\n", False, False)]
        else:
            tokens += vocab.tokenize(SNIPPET)
        tokens += texts.tokenize(file.text, False, False)
    if vocab.fim_sep >= 0:
        tokens += [vocab.fim_sep, *vocab.tokenize(FILE)]
    return tokens


def _last(tokens: list[int], n: int) -> list[int]:
    return tokens[max(0, len(tokens) - n) :]
