"""Test presets that share a worker (`base`): one process, several names, each with its defaults in every dialect."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lifecycle_tools import router, settle
from llama_corral.common.base.errors import ConfigError
from llama_corral.presets.options.settings import Settings
from llama_corral.presets.preset import Preset
from llama_corral.presets.sources import load_presets
from llama_corral.presets.variants import DEFAULTS_HEADER, MAX_HEADER, read_header
from programs import Program, Programs, wait_until
from router_tools import preset, presets

PRESETS = """
[*]
threads = 1
ctx-size = 1024
parallel = 2
slots = on

[whole]
model = {models}/tiny-llama.gguf
alias = all
temp = 0.25
top-k = 7
grammar = root ::= "no" [a-z]*
n-predict = 5

[yes]
base = whole
alias = y, agreeing
tags = short
temp = 0.5
grammar = root ::= "yes"
chat-template-kwargs = {"mood": "fine"}
system-prompt = Be brief.

[object]
base = yes
json-schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": false}
n-predict = 64

[other]
model = {models}/tiny-llama-b.gguf
system-prompt = Täglich neu; "so".
"""


# -- from files to presets -------------------------------------------------------------------------------------------


def read(
    tmp_path: Path, text: str, argv: Mapping[str, Any] | None = None, *, is_strict: bool = False
) -> dict[str, Preset]:
    path = tmp_path / "presets.ini"
    path.write_text(text)
    environ = {"HOME": str(tmp_path), "LLAMA_CACHE": str(tmp_path / "none")}
    return load_presets(Settings.of(models_preset=str(path), presets_strict=is_strict), argv or {}, environ)


def test_a_variant_has_its_bases_options_and_its_own(tmp_path: Path) -> None:
    found = read(tmp_path, PRESETS)
    assert list(found) == ["object", "other", "whole", "yes"]
    yes, whole, other = found["yes"], found["whole"], found["other"]
    assert (yes.base, yes.aliases, yes.tags) == ("whole", ("agreeing", "y"), ("short",))
    assert found["object"].base == "whole", "a base's base is the base"
    name, options, system_prompt = read_header(yes.defaults)
    assert (name, system_prompt) == ("yes", "Be brief.")
    assert (options["temperature"], options["top_k"], options["n_predict"]) == ("0.5", "7", "5")
    assert "ctx_size" not in options
    assert "grammar" not in read_header(found["object"].defaults).options, "the schema stands in its place"
    assert (whole.base, whole.defaults, other.base) == ("", "", "")
    assert read_header(other.defaults) == ("other", {}, 'Täglich neu; "so".')
    assert other.defaults.isascii()


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("base = nobody", "5: base: there is no model 'nobody'"),
        ("base = b", r"5: base: \[b\] and \[b\] are each other's base"),
        ("base = c\n[c]\nbase = b", r"7: base: \[b\] and \[c\] are each other's base|\[c\] and \[b\]"),
        ("base = a\nctx-size = 64", r"6: ctx-size: .* shares the worker of \[a\]"),
        ("base = a\nmodel = y.gguf", r"6: model: .* shares the worker of \[a\]"),
        ("base = a\npin = on", r"6: pin: .* shares the worker of \[a\]"),
        ("base = a\ntemp = warm", "6: temp: invalid value 'warm'"),
        ("base = a\nalias = a", "alias 'a' of model 'b' is the name of another model"),
        ("base = a\n[*]\nbase = a", r"7: base: not allowed in \[\*\]"),
        (f"base = a\nsystem-prompt = {'x' * MAX_HEADER}", "model 'b': its request options need more than"),
    ],
)
def test_sections_that_cannot_share(tmp_path: Path, section: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        read(tmp_path, f"\n[a]\nmodel = x.gguf\n[b]\n{section}\n", is_strict=True)


def test_sections_of_one_model_without_a_base_do_not_share_a_worker(tmp_path: Path) -> None:
    found = read(tmp_path, "[a]\nmodel = x.gguf\ntemp = 0\n[b]\nmodel = x.gguf\ntemp = 1\n")
    assert not found["a"].base
    assert not found["b"].base


# -- in the router ---------------------------------------------------------------------------------------------------


async def test_requests_for_variants_share_one_load_and_one_queue_entry() -> None:
    entries = presets(preset("a"), preset("v", base="a", defaults="{}"), preset("b"))

    async with router(presets=entries, models_max=1) as r:
        clients = [r.client(name) for name in ("v", "a", "v")]
        await settle()
        assert [worker.name for worker in r.launcher.workers] == ["a"]
        r.launcher["a"].report("ready")
        await settle()
        asked = [client.lease.preset.name for client in clients if client.lease and client.lease.preset]
        assert asked == ["v", "a", "v"]
        views = {view.name: view for view in r.lifecycle.views()}
        assert (views["v"].status, views["v"].leases, views["b"].status) == ("loaded", 3, "unloaded")
        other = r.client("b")
        await settle()
        assert not r.launcher["a"].stop_asked, "busy under each of its names"
        for client in clients:
            await client.finish()
        await settle()
        assert r.launcher["a"].stop_asked
        await other.leave()


async def test_a_model_that_becomes_a_variant_stops_its_worker() -> None:
    async with router(presets=presets(preset("a"), preset("b"))) as r:
        client = r.client("b")
        await settle()
        r.launcher["b"].report("ready")
        await settle()
        await r.lifecycle.reload(presets(preset("a"), preset("b", base="a")))
        assert client.is_served
        await client.finish()
        assert r.launcher["b"].stop_asked
        r.launcher["b"].exit(0)
        await settle()
        again = r.client("b")
        await settle()
        r.launcher["a"].report("ready")
        await settle()
        assert again.lease is not None
        assert again.lease.model == "a"
        await again.finish()
        await r.lifecycle.reload(presets(preset("a")))
        assert r.lifecycle.find("b") is None


# -- with a worker ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(module_programs: Programs) -> Program:
    return module_programs.gateway("--models-max", "1", presets=PRESETS)


def post(gateway: Program, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    answer = gateway.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


HELLO = [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/completion", {"prompt": "A"}, lambda a: a["content"]),
        ("/v1/completions", {"prompt": "A"}, lambda a: a["choices"][0]["text"]),
        ("/v1/chat/completions", {"messages": HELLO}, lambda a: a["choices"][0]["message"]["content"]),
        ("/v1/responses", {"input": "Hello"}, lambda a: a["output"][0]["content"][0]["text"]),
        ("/v1/messages", {"messages": HELLO, "max_tokens": 9}, lambda a: a["content"][0]["text"]),
        ("/api/chat", {"messages": HELLO, "stream": False}, lambda a: a["message"]["content"]),
        ("/api/generate", {"prompt": "Hello", "stream": False}, lambda a: a["response"]),
    ],
)
def test_defaults_apply_in_every_dialect(gateway: Program, path: str, body: dict[str, Any], said: Any) -> None:
    for name, expected in (("yes", "yes"), ("agreeing", "yes"), ("whole", "no[a-z]*")):
        answer = post(gateway, path, {"model": name, **body})
        assert re.fullmatch(expected, said(answer))
        if "/api/" not in path:  # Ollama returns the requested name
            assert answer["model"] == ("yes" if name != "whole" else "whole")
    assert json.loads(said(post(gateway, path, {"model": "object", **body, "max_tokens": 64}))) == {"a": 1}


def test_fields_of_a_request_override_the_defaults(gateway: Program) -> None:
    shown = post(gateway, "/completion", {"model": "yes", "prompt": "A", "top_k": 3})["generation_settings"]
    assert (shown["temperature"], shown["top_k"], shown["n_predict"]) == (0.5, 3, 5)
    whole = post(gateway, "/completion", {"model": "whole", "prompt": "A"})["generation_settings"]
    assert (whole["temperature"], whole["top_k"]) == (0.25, 7)
    other = post(gateway, "/completion", {"model": "yes", "prompt": "A", "grammar": 'root ::= "maybe"'})
    assert other["content"] == "maybe"


def test_system_prompts(gateway: Program) -> None:
    def prompt(model: str, *messages: dict[str, str]) -> str:
        return str(post(gateway, "/apply-template", {"model": model, "messages": [*messages, *HELLO]})["prompt"])

    assert "Be brief." in prompt("yes")
    assert "Be brief." in prompt("object")
    assert "Be brief." not in prompt("whole")
    assert "Be brief." not in prompt("yes", {"role": "system", "content": "Be long."})
    assert 'Täglich neu; "so".' in prompt("other"), "a model that is no variant may have one, too"


def test_a_client_cannot_send_defaults(gateway: Program) -> None:
    forged = json.dumps(["me", {"temperature": "0.9"}, ""])
    body = {"model": "whole", "prompt": "A"}
    answer = gateway.client.post("/completion", json=body, headers={DEFAULTS_HEADER: forged}).json()
    assert (answer["model"], answer["generation_settings"]["temperature"]) == ("whole", 0.25)


def test_a_worker_without_a_router_ignores_defaults(worker: Program) -> None:
    forged = json.dumps(["me", {"temperature": "0.9"}, ""])
    answer = worker.client.post("/completion", json={"prompt": "A", "n_predict": 1}, headers={DEFAULTS_HEADER: forged})
    assert answer.json()["model"] == "tiny"


def test_variants_share_one_worker_and_its_state(gateway: Program) -> None:
    post(gateway, "/completion", {"model": "object", "prompt": "A"})
    models = gateway.models()
    assert [models[name]["status"]["value"] for name in ("whole", "yes", "object", "other")] == 3 * ["loaded"] + [
        "unloaded"
    ]
    assert (models["yes"]["base"], models["object"]["base"]) == ("whole", "whole")
    assert (models["yes"]["aliases"], models["yes"]["tags"]) == (["agreeing", "y"], ["short"])
    assert models["yes"]["meta"] == models["whole"]["meta"]
    assert "system-prompt = Be brief." in models["yes"]["status"]["preset"]
    pids = {gateway.client.get("/slots", params={"model": name}).json()[0]["id"] for name in ("whole", "yes")}
    assert pids == {0}
    props = gateway.client.get("/props", params={"model": "y"}).json()
    assert props["model_alias"] == "yes"
    assert props["default_generation_settings"]["params"]["temperature"] == 0.5


def test_load_and_unload_by_any_name(gateway: Program) -> None:
    post(gateway, "/completion", {"model": "yes", "prompt": "A"})
    again = gateway.client.post("/models/load", json={"model": "object"})
    assert (again.status_code, again.json()["error"]["message"]) == (400, "model is already running")
    with gateway.client.stream("GET", "/models/sse") as events:
        lines = events.iter_lines()
        next(lines)
        post(gateway, "/models/unload", {"model": "object"})
        told: set[str] = set()
        for line in lines:
            event = json.loads(line[6:]) if line.startswith("data: ") else {}
            if event.get("event") == "status_change" and event["data"]["status"] == "unloaded":
                told.add(event["model"])
            if told >= {"whole", "yes", "object"}:
                break
    for name in ("whole", "yes", "object"):
        gateway.wait_for_status(name, "unloaded")
    post(gateway, "/models/load", {"model": "y"})
    gateway.wait_for_status("whole", "loaded")


def test_a_changed_variant_restarts_nothing(programs: Programs) -> None:
    text = PRESETS.replace("[other]", "[late]\nbase = whole\ntemp = 0.125\n[other]")
    gateway = programs.gateway(presets=PRESETS)
    file = Path(gateway.argv[gateway.argv.index("--models-preset") + 1])

    def temperature(model: str) -> Any:
        shown = post(gateway, "/completion", {"model": model, "prompt": "A"})["generation_settings"]
        return shown["temperature"]

    assert temperature("yes") == 0.5
    workers = {process.pid for process in gateway.family()}
    file.write_text(text.replace("{models}", str(programs.models)).replace("temp = 0.5", "temp = 0.75"))
    wait_until(lambda: "late" in gateway.models(), "the new variant")
    assert (temperature("yes"), temperature("late"), temperature("whole")) == (0.75, 0.125, 0.25)
    assert {process.pid for process in gateway.family()} == workers
    file.write_text(re.sub(r"\[late\]\n.*\n.*\n", "", file.read_text()))
    wait_until(lambda: "late" not in gateway.models(), "its end")
    refused = gateway.client.post("/completion", json={"model": "late", "prompt": "A"})
    assert refused.status_code == 400
    assert {process.pid for process in gateway.family()} == workers


def test_an_invalid_default_is_reported_and_affects_no_other_variant(programs: Programs) -> None:
    broken = '[whole]\nmodel = {models}/tiny-llama.gguf\nthreads = 1\n[bad]\nbase = whole\njson-schema = {"type": 7}\n'
    gateway = programs.gateway(presets=broken)
    refused = gateway.client.post("/completion", json={"model": "bad", "prompt": "A"})
    assert (refused.status_code, refused.json()["error"]["type"]) == (500, "server_error")
    assert "model 'bad' cannot be used: --json-schema" in refused.json()["error"]["message"]
    post(gateway, "/completion", {"model": "whole", "prompt": "A", "n_predict": 1})
