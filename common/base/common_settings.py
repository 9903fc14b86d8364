"""The options that the `common` package reads, as a protocol.

The option table's `Settings` class has all these attributes.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, Self


class CommonSettings(Protocol):
    """Read-only settings. Units, ranges and meanings are those of the options with the same names."""

    @property
    def model_fields_set(self) -> set[str]:
        """Names of the options that the user set, from any source."""
        ...

    @property
    def api_key(self) -> tuple[str, ...]: ...

    @property
    def api_key_file(self) -> str: ...

    @property
    def api_prefix(self) -> str: ...

    @property
    def cors_credentials(self) -> bool: ...

    @property
    def cors_headers(self) -> str: ...

    @property
    def cors_methods(self) -> str: ...

    @property
    def cors_origins(self) -> str: ...

    @property
    def hf_file(self) -> str: ...

    @property
    def hf_repo(self) -> str: ...

    @property
    def hf_repo_draft(self) -> str: ...

    @property
    def hf_token(self) -> str: ...

    @property
    def host(self) -> tuple[str, ...]: ...

    @property
    def log_colors(self) -> Literal["on", "off", "auto"]: ...

    @property
    def log_disable(self) -> bool: ...

    @property
    def log_file(self) -> str: ...

    @property
    def log_jsonl(self) -> bool: ...

    @property
    def log_prefix(self) -> bool: ...

    @property
    def log_timestamps(self) -> bool: ...

    @property
    def log_verbosity(self) -> int: ...

    @property
    def max_body(self) -> int: ...

    @property
    def mcp_servers_config(self) -> str: ...

    @property
    def mcp_servers_json(self) -> str: ...

    @property
    def mmproj(self) -> str: ...

    @property
    def mmproj_auto(self) -> bool: ...

    @property
    def mmproj_url(self) -> str: ...

    @property
    def model(self) -> str: ...

    @property
    def model_draft(self) -> str: ...

    @property
    def model_url(self) -> str: ...

    @property
    def offline(self) -> bool: ...

    @property
    def path(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def reuse_port(self) -> bool: ...

    @property
    def spec_type(self) -> tuple[str, ...]: ...

    @property
    def ssl_cert_file(self) -> str: ...

    @property
    def ssl_key_file(self) -> str: ...

    @property
    def timeout(self) -> int: ...

    @property
    def tools(self) -> tuple[str, ...]: ...

    @property
    def tools_root(self) -> str: ...

    @property
    def tools_runtime(self) -> str: ...

    @property
    def ui(self) -> bool: ...

    @property
    def ui_mcp_proxy(self) -> bool: ...

    def model_copy(self, *, update: dict[str, Any]) -> Self:
        """Return a copy of the settings in which the options in `update` have new values."""
        ...
