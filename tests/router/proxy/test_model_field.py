"""Test which model a body names: JSON and forms, valid and broken."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import InvalidRequest
from llama_corral.router.proxy.model_field import (
    ollama_in_json,
    streams_in_form,
    target_in_form,
    target_in_json,
    with_model_in_form,
)

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=5), scalars, max_size=3)


@given(st.text(), st.dictionaries(st.text().filter(lambda key: key != "model"), values, max_size=4))
def test_name_is_read_independent_of_other_fields(name: str, others: dict[str, object]) -> None:
    assert target_in_json(json.dumps({**others, "model": name}).encode()).model == name
    assert target_in_json(json.dumps({"model": name, **others}, ensure_ascii=False).encode()).model == name


NAMELESS = """{} {"model":null} {"model":7} {"model":["a"]} {"model":{}} [] [{"id":0}] "model" 7 {"a":{"model":"b"}}"""
BROKEN = r"""{ nonsense {"model":"a" {"model":"a"}trailing {"a":tru} {'model':'a'} {"model":"\ud800"} model=a"""


@pytest.mark.parametrize("body", [b"", b" \n", *NAMELESS.encode().split()])
def test_bodies_without_a_name(body: bytes) -> None:
    assert target_in_json(body).model == ""


def test_last_of_repeated_names_counts() -> None:
    assert target_in_json(b'{"model": "a", "model": "b"}').model == "b"


@pytest.mark.parametrize("body", [*BROKEN.encode().split(), b'{"model":"\xff"}', b'{"a":' + b"[" * 100_000])
def test_invalid_json_is_refused_with_its_position(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="cannot be parsed as JSON"):
        target_in_json(body)


FILE = b'Content-Disposition: form-data; name="file"; filename="model"\r\nContent-Type: a/b\r\n\r\n\0\r\n--not\r\n'


def form(*parts: bytes, boundary: bytes = b"----x") -> bytes:
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


MODEL = b'Content-Disposition: form-data; name="model"\r\n\r\nwhisper: \xc3\xa9'


@pytest.mark.parametrize("parts", [(MODEL,), (FILE, MODEL), (MODEL, FILE), (FILE, FILE, MODEL)])
def test_form_field_is_found_at_any_position(parts: tuple[bytes, ...]) -> None:
    assert target_in_form(form(*parts), "multipart/form-data; boundary=----x").model == "whisper: é"
    assert target_in_form(form(*parts), 'multipart/form-data; charset=utf-8; boundary="----x"').model == "whisper: é"


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (form(FILE), "multipart/form-data; boundary=----x"),
        (form(MODEL), "multipart/form-data; boundary=other"),
        (form(MODEL), "multipart/form-data"),
        (b"", "multipart/form-data; boundary=----x"),
        (b"------x\r\n" + MODEL, "multipart/form-data; boundary=----x"),
    ],
    ids=["no such field", "other boundary", "no boundary", "empty", "cut off"],
)
def test_form_without_a_name(body: bytes, content_type: str) -> None:
    assert target_in_form(body, content_type).model == ""


@pytest.mark.parametrize("parts", [(FILE,), (FILE, FILE), (MODEL,), (FILE, MODEL)])
def test_a_name_is_set_in_a_form_with_and_without_one(parts: tuple[bytes, ...]) -> None:
    kind = "multipart/form-data; boundary=----x"
    named = with_model_in_form(form(*parts), kind, "ours é")
    assert target_in_form(named, kind).model == "ours é"
    assert named.count(FILE) == parts.count(FILE)
    assert named.count(b'; name="model"') == 1
    assert with_model_in_form(form(*parts), "multipart/form-data", "ours") == form(*parts)


def test_the_retention_has_the_same_fields_in_every_dialect() -> None:
    for text, seconds in (('"ttl": 5', 5), ('"ttl": 5, "keep_alive": "1m"', 60), ('"keep_alive": null, "ttl": -1', -1)):
        body = f'{{"model": "x", {text}}}'.encode()
        assert target_in_json(body).keep_alive == seconds
        assert ollama_in_json(body).keep_alive == seconds


def test_form_that_requests_a_stream() -> None:
    kind = "multipart/form-data; boundary=----x"
    stream = b'Content-Disposition: form-data; name="stream"\r\n\r\n'
    assert streams_in_form(form(FILE, stream + b"true", MODEL), kind)
    assert not streams_in_form(form(FILE, stream + b"false", MODEL), kind)
    assert not streams_in_form(form(FILE, MODEL), kind)


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_form_is_parsed_without_an_exception(body: bytes, boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}"
    for candidate in (body, b"--" + boundary.encode() + body):
        assert isinstance(target_in_form(candidate, kind).model, str)
