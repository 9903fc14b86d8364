"""The option table, part 5: HTTP of router and worker, endpoints and chat."""

from typing import Literal

from .option import OptionGroup, OptionReader, Repeat, option, within
from .values import ByteSize, Hosts, JsonObject, Names, OffBelowZero, OnOffAuto, SecretNames, Switch, Texts, UrlPath


class HttpOptions(OptionGroup):
    title = "HTTP"

    host: Hosts = option(
        ("127.0.0.1",),
        "--host",
        "addresses to listen on, separated by commas; names that end in .sock are unix sockets",
        env="HOST",
        hint="HOSTS",
        reader=OptionReader.BOTH,
    )
    port: int = option(
        8080,
        "--port",
        "port to listen on; 0: any free port",
        env="PORT",
        hint="PORT",
        reader=OptionReader.BOTH,
        limits=within(0, 65535),
    )
    reuse_port: Switch = option(
        False,
        "--reuse-port",
        "allow several processes to listen on the port",
        env="REUSE_PORT",
        reader=OptionReader.BOTH,
    )
    path: str = option(
        "",
        "--path",
        "directory of files to serve; with an index.html they need no API key",
        env="STATIC_PATH",
        hint="DIR",
        reader=OptionReader.BOTH,
    )
    api_prefix: UrlPath = option(
        "",
        "--api-prefix",
        "path prefix of all endpoints, without a slash at the end",
        env="API_PREFIX",
        hint="PREFIX",
        reader=OptionReader.BOTH,
    )
    timeout: OffBelowZero = option(
        3600,
        "-to --timeout",
        "seconds without data from a worker after which the router aborts the request; 0: never",
        env="TIMEOUT",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
    )
    drain_timeout: float = option(
        5.0,
        "--drain-timeout",
        "seconds that running responses have to finish after a stop request",
        hint="SECONDS",
        reader=OptionReader.BOTH,
        limits=within(ge=0),
    )
    sse_ping_interval: int = option(
        30,
        "--sse-ping-interval",
        "seconds between comments on a stream without output; -1: none",
        env="SSE_PING_INTERVAL",
        hint="SECONDS",
        reader=OptionReader.BOTH,
        limits=within(ge=-1),
    )
    threads_http: int = option(
        -1,
        "--threads-http",
        "number of threads for requests",
        env="THREADS_HTTP",
        hint="N",
        reader=OptionReader.BOTH,
        notice="one event loop handles all requests",
    )
    api_key: SecretNames = option(
        (),
        "--api-key",
        "keys, separated by commas; each request must contain one of them",
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
        "file with additional keys, one per line; # starts a comment. A router reads it again when it changes",
        env="API_KEY_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    ssl_key_file: str = option(
        "",
        "--ssl-key-file",
        "file with the private key for TLS (PEM)",
        env="SSL_KEY_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    ssl_cert_file: str = option(
        "",
        "--ssl-cert-file",
        "file with the certificate for TLS (PEM)",
        env="SSL_CERT_FILE",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    cors_origins: str = option(
        "*",
        "--cors-origins",
        "origins whose pages may read responses, separated by commas; localhost: all pages of this machine",
        env="CORS_ORIGINS",
        hint="ORIGINS",
        reader=OptionReader.BOTH,
    )
    cors_methods: str = option(
        "GET, POST, DELETE, OPTIONS",
        "--cors-methods",
        "methods that browser pages may use",
        env="CORS_METHODS",
        hint="METHODS",
        reader=OptionReader.BOTH,
    )
    cors_headers: str = option(
        "*",
        "--cors-headers",
        "headers that browser pages may send",
        env="CORS_HEADERS",
        hint="HEADERS",
        reader=OptionReader.BOTH,
    )
    cors_credentials: Switch = option(
        True,
        "--cors-credentials",
        "allow credentials; if all origins are allowed, the request's origin is returned",
        env="CORS_CREDENTIALS",
        reader=OptionReader.BOTH,
    )
    allowed_hosts: Names = option(
        (),
        "--allowed-hosts",
        "names of this server, separated by commas, under which pages and programs may change something without a "
        "key, such as those of reverse proxies; .example.com: all names below it; *: all names",
        env="ALLOWED_HOSTS",
        hint="NAMES",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    ui: Switch = option(
        True,
        "--ui",
        "serve a web page at /",
        older="--webui --no-webui",
        env="UI",
        older_env="WEBUI",
        reader=OptionReader.BOTH,
    )
    ui_config: JsonObject = option(
        "",
        "--ui-config",
        "default settings of the web page, as JSON",
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
        "file with the default settings of the web page",
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
        "serve /cors-proxy, which forwards requests of the web page to MCP servers",
        older="--webui-mcp-proxy --no-webui-mcp-proxy",
        env="UI_MCP_PROXY",
        reader=OptionReader.BOTH,
        router_own=True,
    )


class EndpointOptions(OptionGroup):
    title = "Endpoints"

    embeddings: Switch = option(
        False, "--embedding --embeddings", "serve embeddings; needs an embedding model", env="EMBEDDINGS"
    )
    reranking: Switch = option(
        False, "--rerank --reranking", "serve reranking; needs a reranking model", env="RERANKING"
    )
    pooling: Literal["none", "mean", "cls", "last", "rank"] | None = option(
        None,
        "--pooling",
        "pooling of token embeddings; default: the model's",
        env="POOLING",
        hint="KIND",
    )
    embd_normalize: int = option(
        2,
        "--embd-normalize",
        "norm of embeddings: -1 none, 0 maximum, 1 taxicab, 2 Euclidean, above 2 p-norm",
        hint="N",
        limits=within(ge=-1),
    )
    metrics: Switch = option(False, "--metrics", "serve /metrics", env="ENDPOINT_METRICS")
    props: Switch = option(False, "--props", "allow changes of properties with POST /props", env="ENDPOINT_PROPS")
    slots: Switch = option(True, "--slots", "serve /slots", env="ENDPOINT_SLOTS")
    media_path: str = option("", "--media-path", "directory of files that requests may use as file:// URLs", hint="DIR")
    reverse_prompt: Texts = option(
        (), "-r --reverse-prompt", "text that stops the generation", hint="TEXT", repeat=Repeat.MANY
    )
    special: Switch = option(False, "-sp --special", "include special tokens in the output")
    escape: Switch = option(True, "-e --escape", r"replace escape sequences (\n, \t, \', …) in texts of options")
    spm_infill: Switch = option(False, "--spm-infill", "build infill prompts in the order suffix, prefix, middle")
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
        "place where tools run: docker:IMAGE or podman:IMAGE, docker-container:ID or podman-container:ID, ssh:HOST",
        env="TOOLS_RUNTIME",
        hint="WHERE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    mcp_servers_config: str = option(
        "",
        "--mcp-servers-config",
        "JSON file with MCP servers (mcpServers), whose tools are added to /tools",
        env="MCP_SERVERS_CONFIG",
        hint="FILE",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    mcp_servers_json: JsonObject = option(
        "",
        "--mcp-servers-json",
        "MCP servers as JSON text, in addition to --mcp-servers-config",
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
        "chat template, as Jinja text or the name of a built-in one; default: the model's",
        env="CHAT_TEMPLATE",
        hint="JINJA",
        replaces=("chat_template_file",),
    )
    chat_template_file: str = option(
        "",
        "--chat-template-file",
        "file with the chat template",
        env="CHAT_TEMPLATE_FILE",
        hint="FILE",
        replaces=("chat_template",),
    )
    chat_template_kwargs: JsonObject = option(
        "",
        "--chat-template-kwargs",
        "variables for the template, as a JSON object",
        env="CHAT_TEMPLATE_KWARGS",
        older_env="$LLAMA_CHAT_TEMPLATE_KWARGS",
        hint="JSON",
    )
    jinja: Switch = option(True, "--jinja", "render the template with Jinja", env="JINJA")
    skip_chat_parsing: Switch = option(
        False,
        "--skip-chat-parsing",
        "return all output as content, including reasoning and tool calls",
        env="SKIP_CHAT_PARSING",
    )
    special_in_messages: Switch = option(
        False,
        "--special-in-messages",
        "special tokens that are spelled in messages of users and tools are special tokens, as in llama-server, not "
        "ordinary text",
        env="SPECIAL_IN_MESSAGES",
    )
    prefill_assistant: Switch = option(
        True,
        "--prefill-assistant",
        "if the last message is from the assistant, continue it",
        env="PREFILL_ASSISTANT",
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] = option(
        "auto",
        "--reasoning-format",
        "field for the reasoning: none keeps it in the content; deepseek, deepseek-legacy and auto return it in "
        "reasoning_content",
        env="THINK",
        hint="FORMAT",
    )
    reasoning: OnOffAuto = option(
        "auto",
        "-rea --reasoning",
        "enable reasoning; auto: the chat template's default",
        env="REASONING",
        hint="on|off|auto",
    )
    reasoning_effort: str = option(
        "default",
        "--reasoning-effort",
        "reasoning effort, passed to the chat template: minimal, low, medium, high, …",
        env="REASONING_EFFORT",
        hint="LEVEL",
    )
    reasoning_budget: int = option(
        -1,
        "--reasoning-budget",
        "maximum number of reasoning tokens; -1: no limit, 0: end it immediately",
        env="THINK_BUDGET",
        hint="N",
        limits=within(ge=-1),
    )
    reasoning_budget_message: str = option(
        "",
        "--reasoning-budget-message",
        "text that is inserted before the end of reasoning that exceeds its budget",
        env="THINK_BUDGET_MESSAGE",
        hint="TEXT",
    )
    reasoning_preserve: Switch | None = option(
        None,
        "--reasoning-preserve",
        "keep earlier reasoning in the history, if the template supports it",
        env="REASONING_PRESERVE",
    )


class CorralOptions(OptionGroup):
    title = "llama-corral"

    max_body: ByteSize = option(
        256 << 20,
        "--max-body",
        "maximum size of a request's body, in bytes or with K, M, G",
        env="$LLAMA_CORRAL_MAX_BODY",
        hint="SIZE",
        reader=OptionReader.BOTH,
    )
    tools_root: str = option(
        "",
        "--tools-root",
        "folder to which the built-in file tools are limited",
        env="$LLAMA_CORRAL_TOOLS_ROOT",
        hint="DIR",
        reader=OptionReader.BOTH,
        router_own=True,
    )
    demo: Switch = option(
        False,
        "--demo",
        "serve the included demo models, unless --models-preset names others",
        env="$LLAMA_CORRAL_DEMO",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
