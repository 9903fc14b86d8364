"""Images, audio and video in chats and forms: how they are parsed before any file is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.worker.api.transcriptions import chat_body
from llama_corral.worker.chat.content import UPLOADED_FILE, ContentReader, join_parts
from llama_corral.worker.chat.prompt import ChatFormat
from llama_corral.worker.chat.request import ChatDefaults, read_chat
from llama_corral.worker.media.sources import MediaSource

DEFAULTS = ChatDefaults(media_marker="<M>")
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QQ==", "detail": "high"}}
TEXTS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
PARTS = (
    "{% for m in messages %}[{{ m.role }}] {% for part in m.content %}({{ part.type }}) {{ part.text }}{% endfor %}"
    "{% endfor %}"
)


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*parts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


def rendered(body: dict[str, Any], template: str) -> str:
    def no_builtin(template: str, chat: Sequence[tuple[str, str]], opens: bool) -> str | None:
        return None

    return ChatFormat(template).render(read_chat(body, DEFAULTS), no_builtin).text


@pytest.mark.parametrize(
    ("parts", "prompt"),
    [
        ([text("What is this:"), IMAGE], "What is this:<M>"),
        ([IMAGE, text("What is this?")], "<M>What is this?"),
        ([text("A"), IMAGE, text("B"), text("C"), IMAGE], "A<M>B\nC<M>"),
        ([IMAGE, IMAGE], "<M><M>"),
        ([text("A"), text("B")], "A\nB"),
    ],
)
def test_a_file_has_a_marker_in_the_text(parts: list[dict[str, Any]], prompt: str) -> None:
    assert rendered(user(*parts), TEXTS) == f"[user] {prompt}"
    as_parts = f"(text) {prompt}" if IMAGE in parts else "(text) A(text) B"
    assert rendered(user(*parts), PARTS) == f"[user] {as_parts}"


@pytest.mark.parametrize(
    ("part", "source"),
    [
        (IMAGE, MediaSource("image", "data:image/png;base64,QQ==")),
        ({"type": "image_url", "image_url": "http://x/y.png"}, MediaSource("image", "http://x/y.png")),
        ({"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}}, MediaSource("audio", "QQ==")),
        ({"type": "input_audio", "input_audio": {"url": "file://a.wav"}}, MediaSource("audio", "file://a.wav")),
        ({"type": "input_video", "input_video": {"data": "QQ=="}}, MediaSource("video", "QQ==")),
        ({"type": "video_url", "video_url": {"url": "http://x/y.mp4"}}, MediaSource("video", "http://x/y.mp4")),
    ],
)
def test_kinds_of_parts(part: dict[str, Any], source: MediaSource) -> None:
    chat = read_chat(user(text("a"), part), DEFAULTS)
    assert chat.media == (source,)
    assert join_parts(chat.messages[0]["content"], "\n") == "a<M>"


def test_files_of_several_messages_keep_their_order() -> None:
    contents = ContentReader("<M>")
    first = {"type": "image_url", "image_url": {"url": "first"}}
    second = {"type": "input_audio", "input_audio": {"data": "second"}}
    assert contents.read([first, text("x")]) == [{"type": "media_marker", "text": "<M>"}, text("x")]
    assert contents.read("plain") == "plain"
    assert contents.read(None) == ""
    contents.read_parts([second])
    assert [source.address for source in contents.media] == ["first", "second"]


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ({"type": "image"}, r"unsupported content\[\].type"),
        ({"type": "media_marker", "text": "<M>"}, r"unsupported content\[\].type"),
        ({"type": ["text"]}, r"unsupported content\[\].type"),
        ({}, r"unsupported content\[\].type"),
        ("words", r"unsupported content\[\].type"),
        ({"type": "text"}, "Expected 'text' of a content part"),
        ({"type": "image_url"}, "Expected 'image_url' of a content part to have a string 'url'"),
        ({"type": "image_url", "image_url": {"url": ""}}, "string 'url'"),
        ({"type": "image_url", "image_url": {"url": 5}}, "string 'url'"),
        ({"type": "input_audio", "input_audio": {"format": "wav"}}, "string 'data'"),
        ({"type": "input_audio", "input_audio": ["x"]}, "string 'data'"),
    ],
)
def test_wrong_parts(part: object, error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        read_chat(user(part), DEFAULTS)


def test_a_refusal_is_text() -> None:
    refusal = {"type": "refusal", "refusal": "No."}
    asked = {"role": "user", "content": "?"}
    for answer in ({"content": [refusal, text("Sorry.")]}, {"content": None, "refusal": "No.\nSorry."}):
        body = {"messages": [asked, {"role": "assistant", **answer}, asked]}
        assert rendered(body, TEXTS) == "[user] ?[assistant] No.\nSorry.[user] ?"
    broken = {"role": "assistant", "content": [{"type": "refusal", "text": "No."}]}
    with pytest.raises(InvalidRequest, match="'refusal' of a content part"):
        read_chat({"messages": [asked, broken, asked]}, DEFAULTS)


def test_a_message_with_an_image_is_not_continued() -> None:
    said = {"role": "assistant", "content": [text("It is"), IMAGE]}
    with pytest.raises(InvalidRequest, match="Cannot continue a message that contains images"):
        read_chat({"messages": [{"role": "user", "content": "Hi"}, said]}, DEFAULTS)


# -- transcriptions --------------------------------------------------------------------------------------------------


def test_a_transcription_form_becomes_a_chat_request() -> None:
    assert chat_body({"model": "m"}) == {
        "model": "m",
        "messages": [{"role": "user", "content": [text("Transcribe audio to text"), UPLOADED_FILE]}],
        "stream": False,
    }
    form = {"prompt": "Write down", "language": "de", "response_format": "json", "stream": "true", "seed": "x"}
    assert chat_body({**form, "max_tokens": "12", "temperature": "0.5"}) == {
        "language": "de",
        "messages": [{"role": "user", "content": [text("Write down (language: de)"), UPLOADED_FILE]}],
        "stream": True,
        "seed": "x",
        "max_tokens": 12,
        "temperature": 0.5,
    }
    lfm2 = chat_body({}, is_lfm2=True)["messages"]
    assert lfm2 == [
        {"role": "system", "content": "Perform ASR."},
        {"role": "user", "content": [text(""), UPLOADED_FILE]},
    ]
    assert rendered({"messages": lfm2}, TEXTS) == "[system] Perform ASR.[user] <M>"


@pytest.mark.parametrize(
    ("form", "error"),
    [
        ({"response_format": "verbose_json"}, "Only 'json' response_format is supported for transcription"),
        ({"response_format": "text"}, "Only 'json'"),
        ({"max_tokens": "many"}, "'max_tokens': must be an integer"),
        ({"temperature": "nan"}, "'temperature': must be a number"),
        ({"temperature": ""}, "'temperature': must be a number"),
        ({"prompt": 5}, "'prompt'"),
    ],
)
def test_wrong_forms(form: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidRequest, match=error):
        chat_body(form)
