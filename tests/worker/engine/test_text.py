"""Text built from tokens: characters and stop strings that are split over tokens."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.batching.text import TextStream, partial_stop
from llama_corral.worker.engine.llama.utf8 import incomplete_tail


def shown(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[list[str], str | None]:
    """Return the text shown after each token, and the stop string that ended it."""
    stream = TextStream(stops)
    texts = []
    for piece in pieces:
        result = stream.add(piece, is_end=False)
        texts.append(result.text)
        if result.stop_word is not None:
            return texts, result.stop_word
    return [*texts, stream.rest()], None


def test_a_character_split_over_tokens_waits() -> None:
    euro = "€".encode()
    assert shown([b"a", euro[:1], euro[1:2], euro[2:], b"b"]) == (["a", "", "", "€", "b", ""], None)


def test_an_incomplete_character_at_the_end_is_not_shown() -> None:
    assert shown([b"a", b"\xe2\x82"]) == (["a", "", ""], None)
    assert shown([b"x S", b"\xf0\x9f"], ("STOP",)) == (["", "", "x S"], None)
    stream = TextStream(())
    stream.add(b"a\xff\xf0\x9f\xa4", is_end=False)
    assert (stream.text, stream.broken) == ("a\N{REPLACEMENT CHARACTER}", "\N{REPLACEMENT CHARACTER}")


def test_a_broken_character_is_replaced() -> None:
    assert shown([b"\xff", b"a"]) == (["\N{REPLACEMENT CHARACTER}", "a", ""], None)
    assert shown([b"\xe2", b"a"])[0][1] == "\N{REPLACEMENT CHARACTER}a", "no character can come of it any more"


def test_a_stop_string_is_never_shown() -> None:
    assert shown([b"one ", b"ST", b"OP", b" two"], ("STOP",)) == (["one ", "", ""], "STOP")
    assert shown([b"one STOP two"], ("STOP",)) == (["one "], "STOP")


def test_a_partial_stop_string_is_shown_if_it_does_not_continue() -> None:
    assert shown([b"one S", b"T", b"AR"], ("STOP",)) == (["", "", "one STAR", ""], None)
    assert shown([b"one ST"], ("STOP",)) == (["", "one ST"], None)


def test_a_stop_string_before_an_incomplete_character_is_found() -> None:
    euro = "€".encode()
    assert shown([b"one ", b"STOP" + euro[:1], euro[1:]], ("STOP",)) == (["one ", "", ""], "STOP")


def test_the_first_stop_string_in_the_text_counts() -> None:
    assert shown([b"ab cd"], ("cd", "b")) == (["a"], "b")


def test_a_stop_string_may_contain_part_of_another() -> None:
    assert shown([b"a", b"a", b"b"], ("aab",)) == (["", "", ""], "aab")
    assert shown([b"a", b"a", b"a", b"b"], ("aab",)) == (["", "", "", "a"], "aab")


def test_a_token_that_ends_the_generation_withholds_nothing() -> None:
    assert TextStream(("STOP",)).add(b"one ST", is_end=True).text == "one ST"


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=5), max_size=3), st.randoms())
def test_any_cut_shows_the_same(text: str, stops: list[str], random: object) -> None:
    data = text.encode("utf-8", "replace")
    cuts = sorted(random.sample(range(len(data) + 1), min(len(data), 7)))  # type: ignore[attr-defined]
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    texts, word = shown(pieces, tuple(stops))
    seen = "".join(texts)
    plain = data.decode()
    found = [plain.find(stop) for stop in stops if stop in plain]
    if word is None:
        assert seen == plain
        assert not found
    else:
        assert plain.startswith(seen + word)
        assert not any(stop in seen for stop in stops)


@given(st.binary(max_size=40))
def test_any_bytes_are_shown_in_full(data: bytes) -> None:
    stream = TextStream(())
    seen = "".join(stream.add(data[i : i + 1], is_end=False).text for i in range(len(data))) + stream.rest()
    assert seen.replace("\N{REPLACEMENT CHARACTER}", "") == data.decode("utf-8", "ignore").replace(
        "\N{REPLACEMENT CHARACTER}", ""
    )


def test_incomplete_tail() -> None:
    for character in "é€🤠":
        data = character.encode()
        assert not incomplete_tail(data)
        assert all(incomplete_tail(data[:n]) for n in range(1, len(data)))
    assert not incomplete_tail(b"")
    assert not incomplete_tail(b"\x80\x80\x80\x80")


def test_partial_stop() -> None:
    assert partial_stop(b"xxab", b"abc") == 2
    assert partial_stop(b"xabc", b"abc") == 0, "a whole one is no beginning"
    assert partial_stop(b"aa", b"aab") == 2
