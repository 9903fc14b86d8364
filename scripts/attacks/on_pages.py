"""Attacks by web pages in a browser of this machine, on a gateway without keys."""

from __future__ import annotations

from typing import Any

from .attack import OTHER, SERVED, Attack, encoded
from .stage import Answer, Stage

EVIL = "https://pages.example"
REFUSED = frozenset({403})
PAGE = {"Origin": EVIL, "Sec-Fetch-Site": "cross-site", "Content-Type": "text/plain;charset=UTF-8"}
# pages may send prompts: --cors-origins allows all by default, as llama-server does
CHANGING: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "/models/load", {"model": "spare"}),
    ("POST", "/v1/models/load", {"model": "spare"}),
    ("POST", "/models/unload", {"model": OTHER}),
    ("POST", "/v1/models/unload", {"model": OTHER}),
    ("POST", "/models", {"model": "someone/model"}),
    ("POST", "/api/pull", {"model": "someone/model"}),
    ("DELETE", "/models?model=chat", {}),
    ("DELETE", "/api/delete", {"model": "chat"}),
    ("POST", "/api/generate", {"model": OTHER, "keep_alive": 0}),
    ("DELETE", "/v1/stream?conv_id=a", {}),
)


async def page_changes(stage: Stage) -> list[Answer]:
    """Send what changes something as a page of another site does, without a preflight."""
    return await stage.send_all([(method, path, PAGE, encoded(body)) for method, path, body in CHANGING])


async def page_loads(stage: Stage) -> list[Answer]:
    """Load a model with an image or a link: a GET without `Origin`."""
    image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
    paths = ("/props?model=spare", "/metrics?model=spare", "/slots?model=spare", "/lora-adapters?model=spare")
    return await stage.send_all([("GET", path, image, b"") for path in paths])


async def foreign_host(stage: Stage) -> list[Answer]:
    """Use a host name that was pointed at this machine, so that the page and the gateway have the same origin."""
    host = {"Host": f"pages.example:{stage.port}", "Content-Type": "application/json"}
    return await stage.send_all([(method, path, host, encoded(body)) for method, path, body in CHANGING[:6]])


async def own_page(stage: Stage) -> list[Answer]:
    """Send the same loads as the gateway's own page does: they must be served."""
    own = {"Origin": stage.url, "Sec-Fetch-Site": "same-origin", "Content-Type": "application/json"}
    return await stage.send_all([("POST", "/models/load", own, encoded({"model": "spare"}))])


def warns(stage: Stage) -> str:
    text = stage.log.read_text(errors="replace").lower()
    return "" if "warn" in text and "key" in text else "no warning about a server without keys for other machines"


ATTACKS = (
    Attack("page-changes", "a page of another site changes models", page_changes, REFUSED, key="", quick=True),
    Attack("page-loads", "a page of another site loads a model with an image", page_loads, REFUSED, key="", quick=True),
    Attack("page-host", "a page with a host name that points here", foreign_host, REFUSED, key="", quick=True),
    Attack("page-own", "the gateway's own page", own_page, SERVED, key="", quick=True),
    Attack(
        "listens-to-all",
        "a server without keys that other machines reach",
        own_page,
        SERVED,
        key="",
        options=("--host", "0.0.0.0"),
        check=warns,
        quick=True,
    ),
)
