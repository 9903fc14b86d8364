"""Test which model a body names: JSON and forms, valid and broken."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_corral.common.base.errors import BodyTooLarge, InvalidRequest
from llama_corral.router.proxy import form_fields
from llama_corral.router.proxy.model_field import (
    ollama_in_json,
    target_in_form,
    target_in_json,
    with_model,
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
    assert target_in_form(form(FILE, stream + b"true", MODEL), kind).streams
    assert not target_in_form(form(FILE, stream + b"false", MODEL), kind).streams
    assert not target_in_form(form(FILE, MODEL), kind).streams


@given(st.binary(max_size=200), st.text(max_size=20))
def test_any_form_is_parsed_without_an_exception(body: bytes, boundary: str) -> None:
    kind = f"multipart/form-data; boundary={boundary}"
    for candidate in (body, b"--" + boundary.encode() + body):
        assert isinstance(target_in_form(candidate, kind).model, str)


# -- hostile bodies --------------------------------------------------------------------------------------------------

KIND = "multipart/form-data; boundary=----x"


def _spent(work: Callable[[], object]) -> float:
    """Return the processor time of `work` in seconds."""
    before = time.process_time()
    with contextlib.suppress(InvalidRequest):
        work()
    return time.process_time() - before


@pytest.mark.parametrize(
    ("body", "kind", "reason"),
    [
        (form(*[b"a"] * 400_000), KIND, "more than 256 parts"),
        (form(b"a: " + b"b" * 10_000_000 + b"\r\n\r\n", MODEL), KIND, "more than 4096 bytes"),
        (form(*[b"a: " + b";" * 4000 + b"\r\n\r\nx"] * 200), KIND, "heads of the form's parts"),
        (form(b"a:\r\n" * 2_000_000), KIND, "more than 4096 bytes"),
        (form(MODEL), "multipart/form-data" + ";a=b" * 16_000 + "; boundary=----x", "header 'Content-Type'"),
        (form(MODEL + b"x" * 5000), KIND, "Field 'model': expected at most 4096 bytes"),
        (form(MODEL, b'Content-Disposition: form-data; name="ttl"\r\n\r\n' + b"1m" * 500_000), KIND, "Field 'ttl'"),
    ],
    ids=["parts", "head", "all heads", "lines", "content type", "name", "duration"],
)
def test_a_form_is_searched_within_limits(body: bytes, kind: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        target_in_form(body, kind)
    assert _spent(lambda: target_in_form(body, kind)) < 0.5


def test_a_form_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []
    find = form_fields._find

    def counted(body: bytes, what: bytes, start: int) -> int:
        end = find(body, what, start)
        searched.append((len(body) if end < 0 else end) - start)
        return end

    monkeypatch.setattr(form_fields, "_find", counted)
    body = form(FILE + b"\0" * 1_000_000, MODEL, FILE)
    assert target_in_form(body, KIND).model == "whisper: é"
    assert sum(searched) < 1.1 * len(body)


@pytest.mark.parametrize("size", [form_fields._WINDOW - 20, form_fields._WINDOW - 3, 3 * form_fields._WINDOW])
def test_a_delimiter_is_found_at_any_offset(size: int) -> None:
    for more in range(0, 20, 3):
        assert target_in_form(form(FILE + b"\0" * (size + more), MODEL), KIND).model == "whisper: é"


@pytest.mark.parametrize("field", ["model", "keep_alive", "ttl"])
def test_a_field_of_megabytes_is_not_echoed(field: str) -> None:
    body = b'{"model": "m", "%b": "%b"}' % (field.encode(), b"1m" * 1_000_000)
    for read in (target_in_json, ollama_in_json):
        with pytest.raises(InvalidRequest, match=f"Field '{field}': expected at most") as refused:
            read(body)
        assert len(refused.value.message) < 200


@pytest.mark.parametrize("digits", [309, 4300, 5000])
@pytest.mark.parametrize("field", ["keep_alive", "ttl"])
def test_a_duration_with_hundreds_of_digits_is_refused(field: str, digits: int) -> None:
    for sign in (b"", b"-"):
        for read in (target_in_json, ollama_in_json):
            with pytest.raises(InvalidRequest, match=field):
                read(b'{"model": "m", "%b": %b%b}' % (field.encode(), sign, b"9" * digits))


BIG = b'"' + b"a" * 100_000 + b'"'
NESTED = b'{"model": "inner"}'


@pytest.mark.parametrize(
    "members",
    [
        b'"model" : "a", "prompt": ' + BIG,
        b'"prompt": ' + BIG,
        b'"prompt": ' + BIG + b', "x": ' + NESTED + b', "model": "a"',
        b'"prompt": ' + BIG + b', "x": ' + NESTED,
        b'"model": "a", "prompt": ' + BIG + b', "mod\\u0065l": "b"',
        b'"model": 7, "prompt": ' + BIG,
    ],
    ids=["one", "none", "nested and own", "nested", "escaped", "number"],
)
def test_the_name_in_large_json_is_changed(members: bytes) -> None:
    body = b"\n{ " + members + b" }"
    assert json.loads(with_model(body, 'ours "é"')) == {**json.loads(body), "model": 'ours "é"'}


def test_an_object_without_members_gets_the_name() -> None:
    assert json.loads(with_model(b"{" + b" " * 100_000 + b"}", "m")) == {"model": "m"}


def test_a_million_members_are_not_built() -> None:
    members = b"".join(b'"%07d":1,' % number for number in range(1_100_000))
    assert with_model(b"{" + members + b'"model":"a"}', "m").endswith(b'"model":"m"}')
    with pytest.raises(BodyTooLarge, match="more than 1000000 members"):
        with_model(b"{" + members + b'"model":"a","model":"b"}', "m")
