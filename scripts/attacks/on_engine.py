"""Attacks on a model's engine: lists and numbers, long texts, media, and chat templates of a hostile model file."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib
from typing import Any

from .attack import AT_ONCE, REFUSED, SERVED, Attack, Sent, chat, completion, encoded, ordinary, sent_json
from .stage import Answer, Stage

EITHER = SERVED | REFUSED
JSON = {"Content-Type": "application/json"}
LONG_PROMPT = "Once upon a time. " * 100
TEMPLATES = {
    "urlize": "{{ ('http://a.aa/ ' * 3000) | urlize }}",
    "urlize-text": "{{ ('(' * 100000 ~ 'www.a.com') | urlize }}",
    "wordwrap": "{{ ('a ' * 20000) | wordwrap(1) | wordwrap(2) | length }}",
    "changed": "{% for a in range(9999) %}{{ loop.changed('a' * 9999) }}{% endfor %}",
    "format": "{{ ('%3000d' * 3000) | format(*range(3000)) | length }}",
    "format-width": "{{ '%999999999d' | format(1) | length }}",
    "loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "doubling": "{% set s = namespace(a='x') %}{% for n in range(40) %}{% set s.a = s.a ~ s.a %}{% endfor %}{{ s.a }}",
    "macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "power": "{{ (9 ** 9999999) % 7 }}",
    "replace": "{{ ('a' * 9999) | replace('', 'b' * 99999) | length }}",
    "sort": "{{ range(99999) | list | sort(reverse=true) | map('string') | join(',') | length }}",
    "indent": "{{ ('a\\n' * 99999) | indent(99999) | length }}",
    "tojson": "{{ (range(99999) | list) | tojson(indent=9999) | length }}",
}
VISION = "[vision]\nmodel = {models}/tiny-gemma3.gguf\nmmproj = {models}/mmproj-gemma3.gguf\nctx-size = 4096\n"
HEARING = "[hearing]\nmodel = {models}/tiny-llama.gguf\nmmproj = {models}/mmproj-audio.gguf\nctx-size = 4096\n"
MORE_PRESETS = (
    "\n"
    + VISION
    + "\n"
    + HEARING
    + "".join(
        f"\n[template-{name}]\nmodel = {{models}}/tiny-llama.gguf\nctx-size = 4096\njinja = true\nchat-template = "
        + '"'
        + text.replace("\\", "\\\\").replace('"', '\\"').replace("{", "{{").replace("}", "}}")
        + '"\n'
        for name, text in TEMPLATES.items()
    )
)


def png(width: int, height: int) -> bytes:
    """Return an image of zeros: its pixels need a thousand times its bytes."""
    row = b"\0" * (1 + (width + 7) // 8)
    squeeze = zlib.compressobj(9)
    pixels = b"".join(squeeze.compress(row) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)  # one bit per pixel
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def wav(rate: int, samples: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes(b"\0\0" * samples)
    return file.getvalue()


def images(number: int, width: int, height: int) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(png(width, height)).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}] * number
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


def sound(rate: int, samples: int, number: int = 1) -> list[dict[str, Any]]:
    data = base64.b64encode(wav(rate, samples)).decode()
    parts = [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}] * number
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What is this?"}]}]


async def disconnecting(stage: Stage) -> list[Answer]:
    """Send long prompts and leave, many times: nothing of it may be left."""
    body = encoded({"model": "chat", "prompt": LONG_PROMPT, "n_predict": 900, "ignore_eos": True})
    for _ in range(20):
        await stage.send_all([("POST", "/completion", JSON, body)], times=AT_ONCE, leave_after=0.1)
    last = encoded({"model": "chat", "prompt": "Hi", "n_predict": 2})
    return await stage.send_all([("POST", "/completion", JSON, last)])


async def staying(stage: Stage) -> list[Answer]:
    """Send the same prompts and wait for short answers."""
    body = encoded({"model": "chat", "prompt": LONG_PROMPT, "n_predict": 20, "ignore_eos": True})
    answers = []
    for _ in range(20):
        answers += await stage.send_all([("POST", "/completion", JSON, body)], times=AT_ONCE)
    return answers


def lists(name: str, what: str, statuses: frozenset[int] = EITHER, *, quick: bool = False, **fields: Any) -> Attack:
    return Attack(name, what, completion(**fields), statuses, quick=quick)


HUGE = 10**400
LISTS = (
    lists("samplers-letters", "samplers of 20,000 letters", samplers="k" * 20_000),
    lists("samplers-names", "100,000 samplers", samplers=["top_k"] * 100_000),
    lists("n-probs", "n_probs of 2^31 - 1", n_probs=2**31 - 1),
    lists("n-probs-vocabulary", "the whole vocabulary with each token", n_probs=512, n_predict=200),
    lists("logit-bias-text", "logit_bias with one text of 4 MB", logit_bias=lambda: [["ab " * (4 << 18), 1.0]]),
    lists(
        "logit-bias-pairs",
        "a million pairs of logit_bias",
        logit_bias=lambda: [[n % 300, 1.0] for n in range(1_000_000)],
    ),
    lists(
        "logit-bias-object",
        "logit_bias with 300,000 texts",
        logit_bias=lambda: {f"text {n}": 1 for n in range(300_000)},
    ),
    lists(
        "preserved-tokens", "200,000 preserved_tokens", preserved_tokens=lambda: [f"text {n}" for n in range(200_000)]
    ),
    lists(
        "message-delimiters",
        "100,000 message_delimiters",
        message_delimiters=lambda: [{"role": "user", "delimiter": f"<{n}>"} for n in range(100_000)],
    ),
    lists("stop", "100,000 stop texts", stop=lambda: [f"stop {n}" for n in range(100_000)]),
    lists("stop-long", "stop texts of 100 MB", stop=lambda: ["s" * (10 << 20)] * 10),
    lists(
        "dry-breakers",
        "100,000 dry_sequence_breakers",
        dry_sequence_breakers=lambda: [f"b{n}" for n in range(100_000)],
        dry_multiplier=0.8,
    ),
    lists(
        "dry-breaker-long",
        "a dry_sequence_breaker of 4 MB",
        dry_sequence_breakers=lambda: ["b" * (4 << 20)],
        dry_multiplier=0.8,
    ),
    lists("response-fields", "300,000 response_fields", response_fields=lambda: [f"a/{n}/b" for n in range(300_000)]),
    lists("response-field-long", "a response_field of 1,000,000 levels", response_fields=lambda: ["a/" * 1_000_000]),
    lists("lora", "300,000 adapters", lora=lambda: [{"id": n, "scale": 1.0} for n in range(300_000)]),
    lists(
        "grammar-triggers",
        "100,000 grammar_triggers",
        grammar='root ::= "x"',
        grammar_lazy=True,
        grammar_triggers=lambda: [{"type": 1, "value": f"w{n}"} for n in range(100_000)],
    ),
    lists("n", "a million answers at once", n=1_000_000, quick=True),
    lists("repeat-last-n", "penalties over 2^31 - 1 tokens", repeat_last_n=2**31 - 1, repeat_penalty=1.1, quick=True),
    lists("min-keep", "min_keep of 2^31 - 1", min_keep=2**31 - 1, quick=True),
    lists("digits", "n_predict of 400 digits", frozenset({400}), n_predict=HUGE, quick=True),
    lists("digits-seed", "a seed of 400 digits", frozenset({400}), seed=HUGE, quick=True),
    lists("digits-temperature", "a temperature of 400 digits", frozenset({400}), temperature=HUGE, quick=True),
    Attack(
        "digits-keep-alive",
        "keep_alive of 4,000 digits",
        sent_json("/api/generate", lambda: {"model": "chat", "prompt": "Hi", "keep_alive": 10**4000}),
        quick=True,
    ),
    Attack(
        "no-token",
        "a grammar that allows none of the tokens",
        completion(grammar='root ::= "x"', logit_bias=[[n, False] for n in range(512)]),
        EITHER,
        quick=True,
    ),
    Attack(
        "detokenize",
        "3,000,000 tokens to /detokenize",
        sent_json("/detokenize", lambda: {"model": "chat", "tokens": [5] * 3_000_000}),
        EITHER,
    ),
)
TEXT = (
    Attack("prompt-long", "a prompt of 64 MB", completion(prompt=lambda: "Once upon a time " * (64 << 16))),
    Attack("prompt-word", "a prompt of 16 MB without a space", completion(prompt=lambda: "a" * (16 << 20))),
    Attack("prompt-tokens", "a prompt of 5,000,000 token ids", completion(prompt=lambda: [5] * 5_000_000), REFUSED),
    Attack(
        "tokenize",
        "64 MB to /tokenize",
        sent_json("/tokenize", lambda: {"model": "chat", "content": "Once upon a time " * (64 << 16)}),
        EITHER,
    ),
    Attack(
        "tokenize-pieces",
        "16 MB to /tokenize, with pieces",
        sent_json("/tokenize", lambda: {"model": "chat", "content": "€ " * (4 << 20), "with_pieces": True}),
        EITHER,
    ),
    Attack(
        "chat-long", "a chat of 64 MB", chat(messages=lambda: [{"role": "user", "content": "Once upon " * (64 << 17)}])
    ),
    Attack(
        "chat-messages",
        "a chat of 500,000 messages",
        chat(messages=lambda: [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 250_000),
    ),
    Attack(
        "prompts",
        "20,000 prompts in one request",
        completion(prompt=lambda: ["Once upon a time"] * 20_000, n_predict=8),
        EITHER,
    ),
    Attack(
        "embeddings",
        "20,000 inputs to /v1/embeddings",
        sent_json("/v1/embeddings", lambda: {"model": "embed", "input": ["Once upon a time"] * 20_000}),
        EITHER,
    ),
    Attack(
        "count-tokens",
        "64 MB to /v1/messages/count_tokens",
        sent_json(
            "/v1/messages/count_tokens",
            lambda: {"model": "chat", "messages": [{"role": "user", "content": "Once upon " * (64 << 17)}]},
        ),
        EITHER,
    ),
    Attack(
        "infill",
        "an infill of 32 MB",
        sent_json("/infill", lambda: {"model": "chat", "input_prefix": "a b " * (8 << 20), "input_suffix": ""}),
        REFUSED | {501},
    ),
    Attack(
        "leaving",
        "100 clients that leave",
        disconnecting,
        SERVED,
        honest=staying,
        quick=True,
    ),
)
MEDIA = (
    Attack(
        "image-large",
        "20 images of 10,000 × 10,000 pixels in one request",
        chat("vision", messages=lambda: images(20, 10_000, 10_000)),
        EITHER,
        model="vision",
        honest=chat("vision", messages=lambda: images(1, 64, 64)),
    ),
    Attack(
        "image-thin",
        "an image of 1 × 60,000 pixels",
        chat("vision", messages=lambda: images(1, 1, 60_000)),
        EITHER,
        model="vision",
        honest=chat("vision", messages=lambda: images(1, 64, 64)),
        quick=True,
    ),
    Attack(
        "images-many",
        "2,000 small images",
        chat("vision", messages=lambda: images(2_000, 8, 8)),
        EITHER,
        model="vision",
        honest=chat("vision", messages=lambda: images(1, 64, 64)),
    ),
    Attack(
        "audio-rate",
        "1,000,000 samples at one sample per second",
        chat("hearing", messages=lambda: sound(1, 1_000_000)),
        EITHER,
        model="hearing",
        honest=chat("hearing", messages=lambda: sound(16_000, 16_000)),
    ),
    Attack(
        "audio-long",
        "20 files of one hour",
        chat("hearing", messages=lambda: sound(200, 3600 * 200, 20)),
        EITHER,
        model="hearing",
        honest=chat("hearing", messages=lambda: sound(16_000, 16_000)),
    ),
)


def templated(name: str) -> Attack:
    model = f"template-{name}"
    return Attack(
        model,
        "a chat template of a hostile file",
        chat(model),
        EITHER,
        model=model,
        honest=ordinary(model),
        may_be_refused=True,
    )


def hostile_name() -> Sent:
    return chat(messages=lambda: [{"role": "user", "content": "a", "name": "n" * (8 << 20)}])


ATTACKS = (
    *LISTS,
    *TEXT,
    *MEDIA,
    *map(templated, TEMPLATES),
    Attack("chat-name", "a name of 8 MB", hostile_name(), EITHER),
)
