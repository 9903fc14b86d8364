"""Detect how a template writes tool calls: the marks around all calls, each call, names, ids and arguments.

Works on texts that `probes` renders. The marks are found by comparing one call with two, and one argument with the
next, independent of their text. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ..template.probes import FIRST_TAG, IDS, KEYS, LAST_TAG, NAMES, SAID, TAG, VALUES, Probes, shared_length, tag_of
from .formats import NOTHING, Calls, JsonCalls, Parameters, Span, TaggedCalls


def detect_calls(probes: Probes, reasoning: Span | None) -> Calls | None:
    """Return the format of tool calls, or None if the template writes none or it is not recognized."""
    one, two = probes.calls(1, 2), probes.calls(2, 2)
    if any(text not in one for text in (NAMES[0], *KEYS, *VALUES)):
        return None
    said, opening = probes.turn(SAID), probes.opening(thinks=False)
    one = _bare(one, said, opening, reasoning)
    two = _bare(two, said, opening, reasoning) if NAMES[1] in two else ""
    found = _enclosing_json(one, NAMES[0])
    if found:
        return _json_calls(one, two, found)
    return _tagged_calls(one, two)


def _bare(turn: str, said: str, opening: str, reasoning: Span | None) -> str:
    """Return a turn with calls without the parts common to other turns. `said`: a turn with only content."""
    turn = turn.partition(SAID)[2] or turn[len(_until_tag(turn[: shared_length(turn, said)])) :]
    if reasoning and reasoning.end in turn[: turn.find(NAMES[0])]:
        turn = turn[turn.find(reasoning.end) + len(reasoning.end) :]
    last = max(turn.rfind(word) for word in (*NAMES, *KEYS, *VALUES))
    ends = re.findall(TAG, said.partition(SAID)[2] + opening)
    cuts = [at for tag in ends if (at := turn.find(tag, last)) >= 0]
    return turn[: min(cuts)] if cuts else turn


class _EnclosingJson(Struct, frozen=True):
    begin: int
    end: int
    value: Any


def _enclosing_json(text: str, word: str, start: int = 0) -> _EnclosingJson | None:
    """Return the outermost JSON value that contains `word`."""
    at = text.find(word, start)
    decoder = json.JSONDecoder()
    for match in re.finditer(r"[\[{]", text[start : max(at, start)]):
        begin = start + match.start()
        try:
            value, end = decoder.raw_decode(text, begin)
        except ValueError:
            continue
        if end > at:
            return _EnclosingJson(begin, end, value)
    return None


def _json_calls(one: str, two: str, found: _EnclosingJson) -> JsonCalls | None:
    array = isinstance(found.value, list)
    call = found.value[0] if array and found.value else found.value
    if not isinstance(call, dict):
        return None
    shape = _shape(call, one[found.begin : found.end])
    if shape is None:
        return None
    before, behind = one[: found.begin], one[found.end :]
    if array:
        return JsonCalls(section=_span(before, behind), array=True, **shape)
    second = _enclosing_json(two, NAMES[1], two.find(NAMES[0])) if two else None
    if second is None:
        return JsonCalls(call=_span(before, behind), **shape)
    first = _enclosing_json(two, NAMES[0])
    between = two[first.end : second.begin] if first else ""
    section, context = _divided(before, between, two[second.end :])
    return JsonCalls(section, context, **shape)


def _shape(call: Mapping[str, Any], text: str) -> dict[str, Any] | None:
    keys = list(call)
    if keys == [NAMES[0]]:
        return {"name": "", "arguments": ""}
    wrapper = next((key for key, value in call.items() if isinstance(value, dict) and NAMES[0] in value.values()), "")
    inner = call[wrapper] if wrapper else call
    name = next((key for key, value in inner.items() if value == NAMES[0]), "")
    arguments = next((key for key, value in inner.items() if KEYS[0] in value), "")
    id = next((key for key, value in call.items() if value == IDS[0]), "")
    if not name or not arguments:
        return None
    outer = wrapper or arguments
    type_first = 'type": "function"' in text and keys[0] == "type"
    return {
        "name": name,
        "arguments": arguments,
        "id": id,
        "id_before_arguments": bool(id) and keys.index(id) < keys.index(outer),
        "wrapper": wrapper,
        "extra": '"type": "function", ' if type_first else "",
    }


def _tagged_calls(one: str, two: str) -> TaggedCalls | None:
    name_at = one.find(NAMES[0])
    behind_name = name_at + len(NAMES[0])
    found = _enclosing_json(one, KEYS[0], behind_name)
    if found:
        middle, behind = one[behind_name : found.begin], one[found.end :]
        parts: dict[str, Any] = {}
    else:
        marks = _parameters(one, behind_name)
        if marks is None:
            return None
        parts = {"parameters": marks[0]}
        middle, behind = marks[1], marks[2]
    before = one[:name_at]
    second = two.find(NAMES[1])
    if second >= 0:
        tail = two[second + len(NAMES[1]) :]
        last = two.rfind(f"{VALUES[1]}0", 0, second) + len(VALUES[1]) + 1
        n_own = len(one) - len(behind) - one.rfind(VALUES[1]) - len(VALUES[1]) - 1  # length of the arguments' own end
        between = two[last + n_own : second]
        behind = tail[tail.rfind(f"{VALUES[1]}1") + len(VALUES[1]) + 1 + n_own :]
        section, context = _divided(before, between, behind)
    else:
        section, context = NOTHING, Span(before, behind)
    call_start, name_start = _last_piece(context.start)
    close, call_end = _first_piece(context.end, bool(call_start))
    id_span, name_end, arguments_start = _around_id(middle)
    return TaggedCalls(
        _stripped(section),
        Span(call_start, call_end),
        Span(name_start, name_end),
        id_span,
        Span(arguments_start, ""),
        close,
        **parts,
    )


def _parameters(one: str, behind_name: int) -> tuple[Parameters, str, str] | None:
    """Return the marks of arguments, the text between name and arguments, and the text after them."""
    spots = []
    at = behind_name
    for word in (KEYS[0], f"{VALUES[0]}0", KEYS[1], f"{VALUES[1]}0"):
        begin = one.find(word, at)
        if begin < 0:
            return None
        spots.append((begin, at := begin + len(word)))
    (key1, key1_end), (value1, value1_end), (key2, _), (_, value2_end) = spots
    middle, between, tail = one[behind_name:key1], one[value1_end:key2], one[value2_end:]
    start = _at_tag(_common_end(middle, between))
    end = _until_tag(between[: shared_length(between, tail)])
    if not start.strip() or not end.strip():
        return None
    inner = one[key1_end:value1]
    split = FIRST_TAG.search(inner)
    close = inner.find(">") + 1
    name_end, value_start = (inner[:close], inner[close:]) if close else (inner, "")
    if not close and split:
        name_end = inner
    blank = len(end) - len(end.lstrip())
    value_end = end if value_start[:1].isspace() or name_end[-1:].isspace() else end[blank:]
    return (
        Parameters(Span(start.strip(), name_end.strip()), Span(value_start, value_end.rstrip())),
        middle.removesuffix(start),
        tail[len(end) :] if tail.startswith(end) else tail,
    )


def _around_id(middle: str) -> tuple[Span, str, str]:
    """Split the text between name and arguments into the id's marks, the name's end, the arguments' start."""
    before, id, behind = middle.partition(IDS[0])
    if not id:
        return NOTHING, middle.strip(), ""
    tag = LAST_TAG.search(before)
    id_start = tag_of(tag) or before.strip()
    return Span(id_start, ""), before.strip().removesuffix(id_start), behind.strip()


def _divided(before: str, between: str, behind: str) -> tuple[Span, Span]:
    """Return the marks around all calls and around each call, from the text before, between and after two calls."""
    start = _at_tag(_common_end(before, between))
    end = _until_tag(between[: shared_length(between, behind)])
    if start.strip() and end.strip():
        section = Span(before.removesuffix(start), behind.removeprefix(end))
    elif start.strip():
        section, end = Span(before.removesuffix(start), ""), between.removesuffix(start)
        if not end.strip() and behind.strip():
            section = Span(section.start, behind)
    else:
        section, start, end = Span(before, behind), "", ""
    return _span(section.start, section.end), _stripped(Span(start, end))


def _common_end(a: str, b: str) -> str:
    n = shared_length(a[::-1], b[::-1])
    return a[len(a) - n :]


def _at_tag(text: str) -> str:
    """Return the text without the rest of a tag at its beginning."""
    cut = re.match(r"[^<\[]*?[>\]]", text)
    if cut and not re.match(r"[^<\[]*[<\[]", cut.group()):
        text = text[cut.end() :]
    return text


def _until_tag(text: str) -> str:
    """Return the text without an incomplete tag at its end."""
    cut = re.search(r"[<\[][^<>\[\]]*$", text)
    return text[: cut.start()] if cut else text


def _last_piece(text: str) -> tuple[str, str]:
    """Return the text before the last mark, and the last mark."""
    tags = list(re.finditer(r"<[^<>]*>?|\[[^\[\]]*\]?", text))
    if len(tags) < 2 and not (tags and text[tags[-1].end() :].strip()):
        return ("", text.strip()) if not tags or not tags[-1].group().endswith((">", "]")) else (text.strip(), "")
    if text[tags[-1].end() :].strip():  # text after the last mark belongs to the next part
        return text[: tags[-1].end()].strip(), text[tags[-1].end() :].strip()
    return text[: tags[-1].start()].strip(), tags[-1].group()


def _first_piece(text: str, has_call_start: bool) -> tuple[str, str]:
    """Return the mark that ends the function, and the rest, which ends the call. A single mark ends the call."""
    tag = re.match(r"\s*<[^<>]*>", text)
    if not tag or not has_call_start:
        return (text.strip(), "") if not has_call_start else ("", text.strip())
    rest = text[tag.end() :]
    return (tag.group().strip(), rest.strip()) if rest.strip() else ("", text.strip())


def _span(start: str, end: str) -> Span:
    """Return a span whose end is only its first tag, if there is one: the text after it ends the turn."""
    tag = FIRST_TAG.match(end)
    return Span(start.strip(), tag_of(tag) or end.strip())


def _stripped(span: Span) -> Span:
    return Span(span.start.strip(), span.end.strip())
