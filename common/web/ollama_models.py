"""Model names and model descriptions in Ollama's dialect: the entries of `/api/tags`, `/api/ps` and `/api/show`.

Pure functions from a `ModelCard` and some facts to JSON. The router uses them for all models, a worker for its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..hub.gguf_names import DEFAULT_TAGS
from ..hub.model_card import TEMPLATE, ModelCard
from .ollama import date_text

LATEST = ":latest"
PULLED: Mapping[str, str] = {"status": "success"}
"""The last message of `/api/pull`, and the only one for a model that is here."""
HUBS = ("hf.co/", "huggingface.co/", "hf-mirror.com/")
"""Prefixes of repository names that are not on Ollama's own hub."""
PARAMETERS = {
    "ctx_size": "num_ctx",
    "n_predict": "num_predict",
    "keep": "num_keep",
    "seed": "seed",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repeat_penalty": "repeat_penalty",
    "repeat_last_n": "repeat_last_n",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "mirostat": "mirostat",
    "mirostat_ent": "mirostat_tau",
    "mirostat_lr": "mirostat_eta",
}
"""Our options by field name → Ollama's name of the model parameter."""
_UNITS = ((10**9, "B", 1), (10**6, "M", 2), (10**3, "K", 0))


# -- names -----------------------------------------------------------------------------------------------------------


def listed_name(name: str) -> str:
    """Return the name with a tag: Ollama's lists always show one, and clients accept names without `:latest`."""
    return name if ":" in name else name + LATEST


def possible_names(name: str) -> Iterable[str]:
    """Yield the names that a client may mean, the most likely first."""
    bare = next((name[len(hub) :] for hub in HUBS if name.startswith(hub)), name)
    for found in dict.fromkeys((name, bare)):
        yield found
        if found.endswith(LATEST):
            yield (found := found.removesuffix(LATEST))
        if ":" in found:
            model, _, tag = found.rpartition(":")
            yield f"{model}:{tag.upper()}"
        else:
            yield from (f"{found}:{tag}" for tag in DEFAULT_TAGS)


# -- entries ---------------------------------------------------------------------------------------------------------


def tag_entry(name: str, card: ModelCard) -> dict[str, Any]:
    return {
        "name": listed_name(name),
        "model": listed_name(name),
        "modified_at": date_text(card.modified),
        "size": card.size,
        "digest": card.digest,
        "details": details(card),
    }


def running_entry(
    name: str, card: ModelCard, *, expires_at: str, n_ctx: int, size: int, size_gpu: int
) -> dict[str, Any]:
    return {
        "name": listed_name(name),
        "model": listed_name(name),
        "size": size or card.size,
        "digest": card.digest,
        "details": details(card),
        "expires_at": expires_at,
        "size_vram": size_gpu,
        "context_length": n_ctx,
    }


def details(card: ModelCard) -> dict[str, Any]:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": card.architecture,
        "families": [card.architecture] if card.architecture else [],
        "parameter_size": size_text(card.n_params),
        "quantization_level": card.quantization,
    }


def size_text(count: int) -> str:
    """Format a number of parameters: 8.0B, 134.52M."""
    for unit, letter, digits in _UNITS:
        if count >= unit:
            return f"{count / unit:.{digits}f}{letter}"
    return str(count) if count else ""


# -- show ------------------------------------------------------------------------------------------------------------


def show(
    name: str,
    card: ModelCard,
    *,
    capabilities: list[str],
    parameters: Mapping[str, str],
    template: str,
    verbose: bool,
) -> dict[str, Any]:
    """Return the body of `/api/show`. `parameters`: options that were set; those unknown to Ollama are left out."""
    given = {PARAMETERS[field]: value for field, value in parameters.items() if field in PARAMETERS}
    lines = [f"{parameter:<30} {value}" for parameter, value in sorted(given.items())]
    return {
        "modelfile": _modelfile(name, card, template, given),
        "parameters": "\n".join(lines),
        "template": template,
        "details": details(card),
        "model_info": _model_info(card, verbose),
        "capabilities": capabilities,
        "modified_at": date_text(card.modified),
        "license": str(card.metadata.get("general.license", "")),
    }


def _model_info(card: ModelCard, verbose: bool) -> dict[str, Any]:
    """Return the file's metadata; without `verbose`, long tokenizer lists are null, as in Ollama."""
    shown: dict[str, Any] = {"general.parameter_count": card.n_params}
    for key, value in card.metadata.items():
        if key != TEMPLATE:
            shown[key] = value if verbose or not (isinstance(value, tuple) and key.startswith("tokenizer.")) else None
    return shown


def _modelfile(name: str, card: ModelCard, template: str, parameters: Mapping[str, str]) -> str:
    """Return a Modelfile for display only: its template is Jinja, but Ollama's files use Go templates."""
    lines = [f"# Modelfile of {name}", f"FROM {card.path or name}"]
    if template:
        lines.append(f'TEMPLATE """{template}"""')
    lines += [f"PARAMETER {parameter} {value}" for parameter, value in sorted(parameters.items())]
    return "\n".join(lines) + "\n"
