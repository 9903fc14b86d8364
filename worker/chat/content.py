"""Read the content of a message: text, or parts with text, images, audio and video.

Each file is replaced by the media marker in the text; the files themselves are returned separately, in the same order.
Pure: nothing is fetched here. Shared by chats and embeddings. Error messages follow llama-server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llama_corral.common.base.errors import InvalidRequest

from ..media.sources import Kind, MediaSource

Part = dict[str, str]

MEDIA_MARKER = "media_marker"
"""The type of a part that replaces a file."""

_MEDIA: Mapping[str, tuple[Kind, tuple[str, ...]]] = {
    "image_url": ("image", ("url",)),
    "input_audio": ("audio", ("data", "url")),
    "input_video": ("video", ("data", "url")),
    "video_url": ("video", ("data", "url")),
}
"""For each part type its kind, and the keys that may contain the file."""


UPLOADED_FILE: Part = {"type": "uploaded_file"}
"""A part that stands for a file which the request does not name in its messages. Only this object, not an equal one."""


class ContentReader:
    """Read the message contents of one request and collect the files that they name in `media`."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self.media: list[MediaSource] = []

    def read(self, content: object, *, takes_refusals: bool = False) -> str | list[Part]:
        """Return the text, or the list of parts. Raises InvalidRequest.

        `takes_refusals`: a part may be a refusal, as in answers of OpenAI's models.
        """
        if content is None:
            return ""
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            raise InvalidRequest("Expected 'content' to be a string or an array")
        return self.read_parts(content, takes_refusals=takes_refusals)

    def read_parts(self, parts: Sequence[object], *, takes_refusals: bool = False) -> list[Part]:
        return [self._read_part(part, takes_refusals) for part in parts]

    def _read_part(self, part: object, takes_refusals: bool) -> Part:
        kind = part.get("type") if isinstance(part, dict) else None
        if part is UPLOADED_FILE:
            return {"type": MEDIA_MARKER, "text": self._marker}
        if isinstance(part, dict) and (kind == "text" or (kind == "refusal" and takes_refusals)):
            text = part.get(kind)
            if not isinstance(text, str):
                raise InvalidRequest(f"Expected '{kind}' of a content part to be a string")
            return {"type": "text", "text": text}
        if not isinstance(part, dict) or not isinstance(kind, str) or kind not in _MEDIA:
            raise InvalidRequest("unsupported content[].type")
        self.media.append(_source(kind, part.get(kind)))
        return {"type": MEDIA_MARKER, "text": self._marker}


def _source(part_type: str, value: object) -> MediaSource:
    """Return the file of a part. `detail` and `format` are ignored: the file contains this information."""
    kind, keys = _MEDIA[part_type]
    if isinstance(value, dict):
        value = next((value[key] for key in keys if value.get(key) is not None), None)
    if not isinstance(value, str) or not value:
        raise InvalidRequest(f"Expected '{part_type}' of a content part to have a string '{keys[0]}'")
    return MediaSource(kind, value)


def has_media(content: str | Sequence[Mapping[str, Any]]) -> bool:
    return not isinstance(content, str) and any(part["type"] == MEDIA_MARKER for part in content)


def marker_in(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text that stands for each file in the messages, or "" if they have no file."""
    contents = (message["content"] for message in messages)
    parts = (part for content in contents if not isinstance(content, str) for part in content)
    return next((part["text"] for part in parts if part["type"] == MEDIA_MARKER), "")


def join_parts(content: str | Sequence[Mapping[str, str]], separator: str) -> str:
    """Return the content as one text. There is no separator around a media marker."""
    if isinstance(content, str):
        return content
    text, after_media = "", False
    for part in content:
        is_media = part["type"] == MEDIA_MARKER
        if text and not is_media and not after_media:
            text += separator
        text += part["text"]
        after_media = is_media
    return text
