"""The option table, part five: HTTP, of the router as well as of a worker, and what its endpoints offer."""

from __future__ import annotations

from typing import Literal

from .option import OptionGroup, OptionReader, Repeat, option, within
from .values import ByteSize, Hosts, JsonObject, Names, OnOffAuto, Switch, Texts, UrlPath


class HttpOptions(OptionGroup):
    title = "HTTP"

    host: Hosts = option(
        ("127.0.0.1",),
        "--host",
        "addresses to listen on, separated by commas; *.sock is a unix socket",
        env="HOST",
        hint="HOSTS",
        reader=OptionReader.BOTH,
    )
    port: int = option(
        8080,
        "--port",
        "port to listen on; 0: a free one",
        env="PORT",
        hint="PORT",
        reader=OptionReader.BOTH,
        limits=within(0, 65535),
    )
    reuse_port: Switch = option(
        False, "--reuse-port", "let several processes listen on the port", env="REUSE_PORT", reader=OptionReader.BOTH
    )
    path: str = option(
        "", "--path", "directory of files to serve", env="STATIC_PATH", hint="DIR", reader=OptionReader.BOTH
    )
    api_prefix: UrlPath = option(
        "",
        "--api-prefix",
        "path under which everything is served, without trailing slash",
        env="API_PREFIX",
        hint="PREFIX",
        reader=OptionReader.BOTH,
    )
    timeout: int = option(
        3600,
        "-to --timeout",
        "seconds until the router gives up a worker that sends nothing; 0: never",
        env="TIMEOUT",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        limits=within(ge=0),
    )
    drain_timeout: float = option(
        5.0,
        "--drain-timeout",
        "seconds that running responses have to finish when the server is asked to stop",
        hint="SECONDS",
        reader=OptionReader.BOTH,
        limits=within(ge=0),
    )
    sse_ping_interval: int = option(
        30,
        "--sse-ping-interval",
        "seconds between comments on a silent stream; -1: none",
        env="SSE_PING_INTERVAL",
        hint="SECONDS",
        reader=OptionReader.BOTH,
        limits=within(ge=-1),
    )
    threads_http: int = option(
        -1,
        "--threads-http",
        "threads for requests",
        env="THREADS_HTTP",
        hint="N",
        reader=OptionReader.BOTH,
        notice="requests are served by one event loop",
    )
    api_key: Names = option(
        (),
        "--api-key",
        "keys of which a request must show one, separated by commas",
        env="$LLAMA_API_KEY",
        hint="KEYS",
        reader=OptionReader.BOTH,
        repeat=Repeat.COMMA,
        router_own=True,
        secret=True,
    )
    api_key_file: str = option(
        "",
        "--api-key-file",
        "file with further keys, one a line, # for comments",
        env="API_KEY_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    ssl_key_file: str = option(
        "",
        "--ssl-key-file",
        "private key for TLS (PEM)",
        env="SSL_KEY_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    ssl_cert_file: str = option(
        "",
        "--ssl-cert-file",
        "certificate for TLS (PEM)",
        env="SSL_CERT_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    cors_origins: str = option(
        "*",
        "--cors-origins",
        "origins that browsers may call from; localhost: any port of this machine",
        env="CORS_ORIGINS",
        hint="ORIGINS",
        reader=OptionReader.BOTH,
    )
    cors_methods: str = option(
        "GET, POST, DELETE, OPTIONS",
        "--cors-methods",
        "methods that browsers may use",
        env="CORS_METHODS",
        hint="METHODS",
        reader=OptionReader.BOTH,
    )
    cors_headers: str = option(
        "*",
        "--cors-headers",
        "headers that browsers may send",
        env="CORS_HEADERS",
        hint="HEADERS",
        reader=OptionReader.BOTH,
    )
    cors_credentials: Switch = option(
        True,
        "--cors-credentials",
        "allow credentials; with any origin the caller's is echoed",
        env="CORS_CREDENTIALS",
        reader=OptionReader.BOTH,
    )
    ui: Switch = option(
        True,
        "--ui",
        "serve the page at /",
        older="--webui --no-webui",
        env="UI",
        older_env="WEBUI",
        reader=OptionReader.BOTH,
    )
    ui_config: JsonObject = option(
        "",
        "--ui-config",
        "defaults of the page, as JSON",
        older="--webui-config",
        env="UI_CONFIG",
        older_env="WEBUI_CONFIG",
        hint="JSON",
        reader=OptionReader.BOTH,
        replaces=("ui_config_file",),
    )
    ui_config_file: str = option(
        "",
        "--ui-config-file",
        "the same from a file",
        older="--webui-config-file",
        env="UI_CONFIG_FILE",
        older_env="WEBUI_CONFIG_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        replaces=("ui_config",),
    )
    ui_mcp_proxy: Switch = option(
        False,
        "--ui-mcp-proxy",
        "serve /cors-proxy, through which the page reaches MCP servers",
        older="--webui-mcp-proxy --no-webui-mcp-proxy",
        env="UI_MCP_PROXY",
        reader=OptionReader.BOTH,
        router_own=True,
    )


class EndpointOptions(OptionGroup):
    title = "Endpoints"

    embeddings: Switch = option(
        False, "--embedding --embeddings", "serve embeddings, with a model made for them", env="EMBEDDINGS"
    )
    reranking: Switch = option(
        False, "--rerank --reranking", "serve reranking, with a model made for it", env="RERANKING"
    )
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = option(
        None,
        "--pooling",
        "how an embedding sums up its tokens; by default as the model says",
        env="POOLING",
        hint="KIND",
    )
    embd_normalize: int = option(
        2,
        "--embd-normalize",
        "norm of embeddings: -1 none, 0 largest value, 1 taxicab, 2 Euclidean, above 2 p-norm",
        hint="N",
        limits=within(ge=-1),
    )
    metrics: Switch = option(False, "--metrics", "serve /metrics", env="ENDPOINT_METRICS")
    props: Switch = option(False, "--props", "let POST /props change properties", env="ENDPOINT_PROPS")
    slots: Switch = option(True, "--slots", "serve /slots", env="ENDPOINT_SLOTS")
    media_path: str = option(
        "",
        "--media-path",
        "directory whose files requests may name as file://",
        hint="DIR",
    )
    reverse_prompt: Texts = option(
        (), "-r --reverse-prompt", "text that ends every answer", hint="TEXT", repeat=Repeat.MANY
    )
    special: Switch = option(False, "-sp --special", "show special tokens in answers")
    escape: Switch = option(True, "-e --escape", r"understand \n, \t, \' and the like in texts given here")
    spm_infill: Switch = option(False, "--spm-infill", "infill in the order suffix, prefix, middle")
    tools: Names = option(
        (),
        "--tools",
        "serve /tools with these built-in tools: read_file, file_glob_search, grep_search, exec_shell_command, "
        "write_file, edit_file, get_info, or all",
        env="TOOLS",
        hint="TOOLS",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    tools_runtime: str = option(
        "",
        "--tools-runtime",
        "where tools run: docker:IMAGE or podman:IMAGE, docker-container:ID or podman-container:ID, ssh:HOST",
        env="TOOLS_RUNTIME",
        hint="WHERE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    mcp_servers_config: str = option(
        "",
        "--mcp-servers-config",
        "JSON file with MCP servers (mcpServers), whose tools /tools serves",
        env="MCP_SERVERS_CONFIG",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    mcp_servers_json: JsonObject = option(
        "",
        "--mcp-servers-json",
        "the same as JSON; both count",
        env="MCP_SERVERS_JSON",
        hint="JSON",
        reader=OptionReader.BOTH,
        router_own=True,
    )


class ChatOptions(OptionGroup):
    title = "Chat"

    chat_template: str = option(
        "",
        "--chat-template",
        "chat template, as Jinja text or the name of a known one; by default the model's",
        env="CHAT_TEMPLATE",
        hint="JINJA",
        replaces=("chat_template_file",),
    )
    chat_template_file: str = option(
        "",
        "--chat-template-file",
        "the same from a file",
        env="CHAT_TEMPLATE_FILE",
        hint="FILE",
        replaces=("chat_template",),
    )
    chat_template_kwargs: JsonObject = option(
        "",
        "--chat-template-kwargs",
        "variables for the template, a JSON object",
        env="CHAT_TEMPLATE_KWARGS",
        older_env="$LLAMA_CHAT_TEMPLATE_KWARGS",
        hint="JSON",
    )
    jinja: Switch = option(True, "--jinja", "render the template with Jinja", env="JINJA")
    skip_chat_parsing: Switch = option(
        False,
        "--skip-chat-parsing",
        "put all output into the content, reasoning and tool calls included",
        env="SKIP_CHAT_PARSING",
    )
    prefill_assistant: Switch = option(
        True,
        "--prefill-assistant",
        "continue a last message of the assistant instead of answering it",
        env="PREFILL_ASSISTANT",
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] = option(
        "auto",
        "--reasoning-format",
        "where thoughts go: none leaves them in the content, deepseek puts them in "
        "reasoning_content, as do auto and deepseek-legacy",
        env="THINK",
        hint="FORMAT",
    )
    reasoning: OnOffAuto = option(
        "auto",
        "-rea --reasoning",
        "let the model think; auto: as its template says",
        env="REASONING",
        hint="on|off|auto",
    )
    reasoning_effort: str = option(
        "default",
        "--reasoning-effort",
        "effort named to the template: minimal, low, medium, high, …",
        env="REASONING_EFFORT",
        hint="LEVEL",
    )
    reasoning_budget: int = option(
        -1,
        "--reasoning-budget",
        "most tokens of thinking; -1: no limit, 0: end it at once",
        env="THINK_BUDGET",
        hint="N",
        limits=within(ge=-1),
    )
    reasoning_budget_message: str = option(
        "",
        "--reasoning-budget-message",
        "text put before the end of thinking that ran out of budget",
        env="THINK_BUDGET_MESSAGE",
        hint="TEXT",
    )
    reasoning_preserve: Switch | None = option(
        None,
        "--reasoning-preserve",
        "keep earlier thoughts in the history, where the template can",
        env="REASONING_PRESERVE",
    )


class CorralOptions(OptionGroup):
    title = "llama-corral"

    max_body: ByteSize = option(
        256 << 20,
        "--max-body",
        "largest request that is read, in bytes or with K, M, G",
        env="$LLAMA_CORRAL_MAX_BODY",
        hint="SIZE",
        reader=OptionReader.BOTH,
    )
    tools_root: str = option(
        "",
        "--tools-root",
        "folder that the built-in tools for files may not leave",
        env="$LLAMA_CORRAL_TOOLS_ROOT",
        hint="DIR",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    demo: Switch = option(
        False,
        "--demo",
        "serve the built-in demonstration models, unless --models-preset names others",
        env="$LLAMA_CORRAL_DEMO",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
