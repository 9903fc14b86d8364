"""All attacks, in the order in which they run, and the models that some of them need."""

from __future__ import annotations

from . import on_connections, on_engine, on_files, on_grammars, on_pages, on_router

ATTACKS = (
    *on_router.ATTACKS,
    *on_connections.ATTACKS,
    *on_grammars.ATTACKS,
    *on_engine.ATTACKS,
    *on_files.ATTACKS,
    *on_pages.ATTACKS,
)
MORE_PRESETS = on_engine.MORE_PRESETS
