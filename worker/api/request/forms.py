"""Reads the texts and files of a `multipart/form-data` request, within the limits for all request bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from llama_corral.common.base.errors import BodyTooLarge, InvalidRequest
from llama_corral.common.web.request_body import LIMITS, let_client_continue, uncompressed
from msgspec import Struct

from .limits import check_limits

FORM = "multipart/form-data"
_MALFORMED = (HttpProcessingError, ValueError, LookupError, RuntimeError, AssertionError)
"""Exceptions that aiohttp raises for malformed forms: wrong headers, boundaries, character sets or encodings."""


class Form(Struct, frozen=True):
    """The parts of a form by name. If several parts have the same name, the first one is used."""

    texts: Mapping[str, str]
    files: dict[str, bytes]


async def read_form(request: web.Request) -> Form:
    limits = request.app[LIMITS]
    if (request.content_length or 0) > limits.max_body:
        raise limits.too_large()
    try:
        async with asyncio.timeout(limits.timeout):
            await let_client_continue(request)
            parts = await (await uncompressed(request)).post()
    except TimeoutError:
        raise InvalidRequest(f"the request body did not arrive within {limits.timeout} s") from None
    except web.HTTPRequestEntityTooLarge as error:  # too many bytes or fields
        raise BodyTooLarge(f"the form is too large: {error.text}") from None
    except _MALFORMED as error:
        raise InvalidRequest(f"the request body cannot be parsed as a form: {_reason(error)}") from None
    texts: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for name, part in parts.items():
        if isinstance(part, web.FileField):
            with part.file as file:  # a large file is on disk
                if name not in files:
                    files[name] = await asyncio.to_thread(file.read)
        else:
            texts.setdefault(name, part if isinstance(part, str) else bytes(part).decode("utf-8", "replace"))
    check_limits(texts)
    return Form(texts, files)


def _reason(error: BaseException) -> str:
    text = error.message if isinstance(error, HttpProcessingError) else str(error)
    return text.partition("\n")[0].strip(" :") or "it is malformed"
