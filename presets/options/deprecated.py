"""Spellings that are not options themselves: shorthands, switches of an earlier llama-server, removed and refused ones.

`table` adds them to the options, and `layer` expands them while reading, so that later code never sees them.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from .values import SAMPLER_LETTERS

Expansion = tuple[tuple[str, str], ...]
"""Fields with their texts."""


class Shorthand(Struct, frozen=True, kw_only=True):
    """A spelling that sets other options."""

    flags: tuple[str, ...]
    expand: Callable[[str], Expansion]
    """Function of the value ("true" or "false" for a switch); raises KeyError or ValueError for an invalid one."""
    help: str
    negated: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    hint: str | None = None


class Removed(Struct, frozen=True, kw_only=True):
    """An option of an earlier or newer llama-server; using it is an error that says what to do instead."""

    flags: tuple[str, ...]
    instead: str
    env: tuple[str, ...] = ()
    is_newer: bool = False
    """True for an option of a newer llama-server that cannot be applied here."""

    @property
    def why(self) -> str:
        return f"{'not supported' if self.is_newer else 'this option was removed'}: {self.instead}"


def _when_true(*values: tuple[str, str]) -> Callable[[str], Expansion]:
    return lambda text: values if text == "true" else ()


def _same(field: str) -> Callable[[str], Expansion]:
    return lambda text: ((field, text),)


def _direct_io(text: str) -> Expansion:
    """Switched on, it does not depend on lower layers; switched off, it only undoes `dio`."""
    return (("load_mode", "dio"),) if text == "true" else (("direct_io", text),)


def _sampler_letters(text: str) -> Expansion:
    return (("samplers", ";".join(SAMPLER_LETTERS[letter] for letter in text)),)


def _agent(text: str) -> Expansion:
    return (("tools", "all" if text == "true" else ""), ("ui_mcp_proxy", text))


def _qwen_coder(model: str, file: str, *draft: tuple[str, str]) -> Callable[[str], Expansion]:
    return _when_true(
        ("hf_repo", f"ggml-org/{model}-GGUF"),
        ("hf_file", f"{file}.gguf"),
        *draft,
        ("port", "8012"),
        ("ubatch_size", "1024"),
        ("batch_size", "1024"),
        ("ctx_size", "0"),
        ("cache_reuse", "256"),
    )


def _gpt_oss(model: str, *file: tuple[str, str]) -> Callable[[str], Expansion]:
    return _when_true(
        ("hf_repo", f"ggml-org/{model}-GGUF"),
        *file,
        ("port", "8013"),
        ("ubatch_size", "2048"),
        ("batch_size", "32768"),
        ("parallel", "2"),
        ("ctx_size", "262144"),
        ("temperature", "1"),
        ("top_p", "1"),
        ("top_k", "0"),
        ("min_p", "0.01"),
        ("jinja", "true"),
    )


def _gemma_vision(size: str) -> Callable[[str], Expansion]:
    repository = f"ggml-org/gemma-3-{size}-it-qat-GGUF"
    return _when_true(("hf_repo", repository), ("port", "8014"), ("ctx_size", "0"), ("jinja", "true"))


_QWEN_DRAFT = ("hf_repo_draft", "ggml-org/Qwen2.5-Coder-0.5B-Q8_0-GGUF")
_QWEN_DRAFT_FILE = ("model_draft", "qwen2.5-coder-0.5b-q8_0.gguf")
_EMBED_GEMMA = _when_true(
    ("hf_repo", "ggml-org/embeddinggemma-300M-qat-q4_0-GGUF"),
    ("hf_file", "embeddinggemma-300M-qat-Q4_0.gguf"),
    ("port", "8011"),
    ("ubatch_size", "2048"),
    ("batch_size", "2048"),
    ("parallel", "32"),
    ("ctx_size", "65536"),
    ("embeddings", "true"),
)
_NGRAM_DEFAULT = _when_true(
    ("spec_type", "ngram-mod"),
    ("spec_ngram_mod_n_match", "24"),
    ("spec_ngram_mod_n_min", "48"),
    ("spec_ngram_mod_n_max", "64"),
)
LOAD_SWITCHES = ("mmap", "mlock", "direct_io")
"""Switches that `--load-mode` replaced. They modify the load mode of the layers below theirs."""


def load_mode_after(before: str, switch: str, on: bool) -> str:
    """Return the load mode after `--mmap` or `--mlock`, its negation, or `--no-direct-io` is applied to `before`."""
    if switch == "direct_io":
        return "auto" if before == "dio" else before
    parts = {"mmap"} if before in ("auto", "dio") and switch == "mlock" else set(before.split("+"))
    parts = (parts & {"mmap", "mlock"}) | ({switch} if on else set())
    parts -= set() if on else {switch}
    return "+".join(sorted(parts, reverse=True, key=("mlock", "mmap").index)) or "none"


_CODER = "predefined model: Qwen 2.5 Coder "

SHORTHANDS = (
    Shorthand(
        flags=("-v", "--verbose", "--log-verbose"),
        expand=_when_true(("log_verbosity", str(2**31 - 1))),
        help="log everything: highest --verbosity",
    ),
    Shorthand(
        flags=("--sampler-seq", "--sampling-seq"),
        expand=_sampler_letters,
        hint="LETTERS",
        help="--samplers as letters: " + ", ".join(f"{key} {name}" for key, name in SAMPLER_LETTERS.items()),
    ),
    Shorthand(
        flags=("--mmap",),
        negated=("--no-mmap",),
        env=("LLAMA_ARG_MMAP",),
        expand=_same("mmap"),
        help="earlier form of --load-mode mmap; --no-mmap: earlier form of --load-mode none",
    ),
    Shorthand(
        flags=("--mlock",),
        negated=("--no-mlock",),
        env=("LLAMA_ARG_MLOCK",),
        expand=_same("mlock"),
        help="earlier form of --load-mode mmap+mlock; with --no-mmap: of --load-mode mlock",
    ),
    Shorthand(
        flags=("-dio", "--direct-io"),
        negated=("-ndio", "--no-direct-io"),
        env=("LLAMA_ARG_DIO",),
        expand=_direct_io,
        help="earlier form of --load-mode dio",
    ),
    Shorthand(
        flags=("-ag", "--agent"),
        negated=("-no-ag", "--no-agent"),
        env=("LLAMA_ARG_AGENT",),
        expand=_agent,
        help="enable all built-in tools and the CORS proxy: --tools all --ui-mcp-proxy",
    ),
    Shorthand(
        flags=("--spec-default",),
        expand=_NGRAM_DEFAULT,
        help="n-gram drafts: --spec-type ngram-mod with n-match 24, n-min 48 and n-max 64",
    ),
    Shorthand(flags=("--embd-gemma-default",), expand=_EMBED_GEMMA, help="predefined model: EmbeddingGemma"),
    Shorthand(
        flags=("--fim-qwen-1.5b-default",),
        expand=_qwen_coder("Qwen2.5-Coder-1.5B-Q8_0", "qwen2.5-coder-1.5b-q8_0"),
        help=_CODER + "1.5B",
    ),
    Shorthand(
        flags=("--fim-qwen-3b-default",),
        expand=_qwen_coder("Qwen2.5-Coder-3B-Q8_0", "qwen2.5-coder-3b-q8_0"),
        help=_CODER + "3B",
    ),
    Shorthand(
        flags=("--fim-qwen-7b-default",),
        expand=_qwen_coder("Qwen2.5-Coder-7B-Q8_0", "qwen2.5-coder-7b-q8_0"),
        help=_CODER + "7B",
    ),
    Shorthand(
        flags=("--fim-qwen-7b-spec",),
        expand=_qwen_coder("Qwen2.5-Coder-7B-Q8_0", "qwen2.5-coder-7b-q8_0", _QWEN_DRAFT, _QWEN_DRAFT_FILE),
        help=_CODER + "7B with a draft model",
    ),
    Shorthand(
        flags=("--fim-qwen-14b-spec",),
        expand=_qwen_coder("Qwen2.5-Coder-14B-Q8_0", "qwen2.5-coder-14b-q8_0", _QWEN_DRAFT, _QWEN_DRAFT_FILE),
        help=_CODER + "14B with a draft model",
    ),
    Shorthand(
        flags=("--fim-qwen-30b-default",),
        expand=_qwen_coder("Qwen3-Coder-30B-A3B-Instruct-Q8_0", "qwen3-coder-30b-a3b-instruct-q8_0"),
        help="predefined model: Qwen 3 Coder 30B A3B Instruct",
    ),
    Shorthand(
        flags=("--gpt-oss-20b-default",),
        expand=_gpt_oss("gpt-oss-20b", ("hf_file", "gpt-oss-20b-mxfp4.gguf")),
        help="predefined model: gpt-oss 20B",
    ),
    Shorthand(
        flags=("--gpt-oss-120b-default",), expand=_gpt_oss("gpt-oss-120b"), help="predefined model: gpt-oss 120B"
    ),
    Shorthand(flags=("--vision-gemma-4b-default",), expand=_gemma_vision("4b"), help="predefined model: Gemma 3 4B"),
    Shorthand(flags=("--vision-gemma-12b-default",), expand=_gemma_vision("12b"), help="predefined model: Gemma 3 12B"),
)

_SPEECH = "speech output is not supported here: use llama-tts"

REMOVED = (
    Removed(
        flags=("--spec-ngram-size-n",),
        instead="use --spec-ngram-simple-size-n, --spec-ngram-map-k-size-n, --spec-ngram-map-k4v-size-n or "
        "--spec-ngram-mod-n-match",
    ),
    Removed(
        flags=("--spec-ngram-size-m",),
        instead="use --spec-ngram-simple-size-m, --spec-ngram-map-k-size-m or --spec-ngram-map-k4v-size-m",
    ),
    Removed(
        flags=("--spec-ngram-min-hits",),
        instead="use --spec-ngram-simple-min-hits, --spec-ngram-map-k-min-hits or --spec-ngram-map-k4v-min-hits",
    ),
    Removed(
        flags=("-cd", "--ctx-size-draft"),
        env=("LLAMA_ARG_CTX_SIZE_DRAFT",),
        instead="the draft model uses the context of --ctx-size",
    ),
    Removed(flags=("--spec-replace",), instead="draft and main model must have the same vocabulary"),
    Removed(flags=("--verbose-prompt",), instead="use --verbose"),
    Removed(flags=("--license",), instead="see the LICENSE files of llama-corral and llama.cpp"),
    Removed(flags=("-gan", "--grp-attn-n"), env=("LLAMA_ARG_GRP_ATTN_N",), instead="use --rope-scaling"),
    Removed(flags=("-gaw", "--grp-attn-w"), env=("LLAMA_ARG_GRP_ATTN_W",), instead="use --rope-scaling"),
    Removed(flags=("-hfv", "-hfrv", "--hf-repo-v"), env=("LLAMA_ARG_HF_REPO_V",), instead=_SPEECH),
    Removed(flags=("-hffv", "--hf-file-v"), env=("LLAMA_ARG_HF_FILE_V",), instead=_SPEECH),
    Removed(flags=("-mv", "--model-vocoder"), instead=_SPEECH),
    Removed(flags=("--tts-use-guide-tokens",), instead=_SPEECH),
)

REFUSED = (
    Removed(flags=("--tts-lang",), instead=_SPEECH, is_newer=True),
    Removed(flags=("--tts-speaker-file",), instead=_SPEECH, is_newer=True),
)
