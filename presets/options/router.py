"""The option table, part 6: the router's models, and the keys that are only for presets files."""

from pydantic import SecretStr

from .option import OptionGroup, OptionReader, option, within
from .values import (
    AUTO_LIMIT,
    DeviceLimits,
    DeviceSizes,
    MemoryLimit,
    NeverBelowZero,
    OffBelowZero,
    OptionalSize,
    Switch,
)


class RouterOptions(OptionGroup):
    title = "Router"

    models_dir: str = option(
        "",
        "--models-dir",
        "directory of models: *.gguf files, and folders with models, up to four levels down",
        env="MODELS_DIR",
        hint="DIR",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_preset: str = option(
        "",
        "--models-preset",
        "presets file with the models' options",
        env="MODELS_PRESET",
        hint="FILE",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    presets_strict: Switch = option(
        False,
        "--presets-strict",
        "do not start, and keep the old models at a reload, if one section of the presets file has a fault; default: "
        "only its model cannot be loaded",
        env="PRESETS_STRICT",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_max: OffBelowZero = option(
        4,
        "--models-max",
        "maximum number of loaded models; 0: no limit",
        env="MODELS_MAX",
        hint="N",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_memory: MemoryLimit = option(
        AUTO_LIMIT,
        "--models-memory",
        "host memory for all models; auto: the free memory; off: no limit",
        env="MODELS_MEMORY",
        hint="SIZE",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_device_memory: DeviceLimits = option(
        (AUTO_LIMIT,),
        "--models-device-memory",
        "like --models-memory, for each device in order (24G,16G; the others: auto); a single number is the sum for "
        "all devices and is divided in proportion to their sizes",
        env="MODELS_DEVICE_MEMORY",
        hint="SIZES",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_memory_margin: OffBelowZero = option(
        1024,
        "--models-memory-margin",
        "MiB that auto keeps free in host memory and on each device, for other programs",
        env="MODELS_MEMORY_MARGIN",
        hint="MIB",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_autoload: Switch = option(
        True,
        "--models-autoload",
        "load a model when a request names it",
        env="MODELS_AUTOLOAD",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    default_model: str = option(
        "",
        "--default-model",
        "name or alias of the model for requests that name none; default: they are refused",
        env="DEFAULT_MODEL",
        hint="NAME",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_ttl: NeverBelowZero = option(
        0.0,
        "--models-ttl",
        "idle seconds after which a model is unloaded, unless its preset has a ttl; 0: never",
        env="MODELS_TTL",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    worker_timeout: NeverBelowZero = option(
        300.0,
        "--worker-timeout",
        "seconds after which a hanging worker is killed: it sends no heartbeat, or its requests make no progress while "
        "it uses no CPU, or a program (cmd) does not answer its health path; 0: never; the minimum is 6",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    stream_open_after: float = option(
        30.0,
        "--stream-open-after",
        "seconds that a streaming request waits for its model before it gets status 200 and then a comment every "
        "--sse-ping-interval seconds; later errors are sent as events; -1: never",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=-1),
    )
    stream_load_progress: Switch = option(
        False,
        "--stream-load-progress",
        "in the stream of a waiting chat, report the reason and the load progress as reasoning (reasoning_content)",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_max_wait: float = option(
        0.0,
        "--models-max-wait",
        "seconds after which a waiting model overrides priorities and minimum stays, and models in use are evicted for "
        "it after their running requests; 0: 60, but models in use are not evicted",
        env="MODELS_MAX_WAIT",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=0),
    )
    models_queue: OffBelowZero = option(
        0,
        "--models-queue",
        "maximum number of requests that wait for all models; more are refused with 503; 0: no limit",
        env="MODELS_QUEUE",
        hint="N",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_parallel_loads: int = option(
        2,
        "--models-parallel-loads",
        "maximum number of models that load in parallel for the queue, if there is room for all of them",
        env="MODELS_PARALLEL_LOADS",
        hint="N",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=1),
    )


class PresetOptions(OptionGroup):
    title = "Only in a presets file"

    load_on_startup: Switch = option(
        False, "load-on-startup", "load the model when the router starts", reader=OptionReader.PRESET
    )
    stop_timeout: float = option(
        10.0,
        "stop-timeout",
        "seconds that a model has to stop before it is killed",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits=within(ge=0),
    )
    pin: Switch = option(
        False, "pin", "do not evict or unload the model, except by a request to unload it", reader=OptionReader.PRESET
    )
    ttl: float = option(
        -1.0,
        "ttl",
        "idle seconds after which the model is unloaded; 0: never; -1: same as --models-ttl",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits=within(ge=-1),
    )
    priority: int = option(
        0,
        "priority",
        "the waiting model with the highest priority is loaded first; the idle model with the lowest is evicted first",
        hint="N",
        reader=OptionReader.PRESET,
    )
    min_stay: float = option(
        0.0,
        "min-stay",
        "seconds after its load during which the model is not evicted for others",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits=within(ge=0),
    )
    group: str = option(
        "",
        "group",
        "group of the model; only one model of a group is loaded, unless the section [group:NAME] says otherwise",
        hint="NAME",
        reader=OptionReader.PRESET,
    )
    max_queue: OffBelowZero = option(
        0,
        "max-queue",
        "maximum number of requests that wait for the model; more are refused with 503; 0: no limit",
        hint="N",
        reader=OptionReader.PRESET,
    )
    concurrency: OffBelowZero = option(
        0,
        "concurrency",
        "maximum number of parallel requests to the model; more are queued; 0: no limit",
        hint="N",
        reader=OptionReader.PRESET,
    )
    concurrency_refuse: Switch = option(
        False,
        "concurrency-refuse",
        "refuse requests beyond concurrency with 429 instead of queueing them",
        reader=OptionReader.PRESET,
    )
    keep_warm: Switch = option(
        False,
        "keep-warm",
        "load the model when the router starts, and again after a failure or eviction, if there is room and no other "
        "model waits; --models-ttl does not apply to it",
        reader=OptionReader.PRESET,
    )
    dedup_cache_models: Switch = option(
        False,
        "dedup-cache-models",
        "do not list cached models that use the same file as this one",
        reader=OptionReader.PRESET,
    )
    base: str = option(
        "",
        "base",
        "model whose worker also serves this section; the section may set only options of requests",
        hint="NAME",
        reader=OptionReader.PRESET,
    )
    system_prompt: str = option(
        "",
        "system-prompt",
        "system message for chats without one",
        hint="TEXT",
        reader=OptionReader.PRESET,
    )


class BackendOptions(OptionGroup):
    title = "Only in a presets file: another program serves the model"

    cmd: str = option(
        "",
        "cmd",
        "command line of a program that serves the model over HTTP instead of our worker, run without a shell; ${PORT} "
        "is a free port, ${MODEL} the model's file, ${MODEL_ID} the section's name, ${env.X} an environment variable",
        hint="COMMAND",
        reader=OptionReader.PRESET,
    )
    cmd_stop: str = option(
        "",
        "cmd-stop",
        "command that stops the program; default: SIGTERM; ${PID} is its process id",
        hint="COMMAND",
        reader=OptionReader.PRESET,
    )
    env: SecretStr = option(
        SecretStr(""),
        "env",
        "environment variables for the program: NAME=VALUE, separated by spaces, in quotes where needed",
        hint="VARIABLES",
        reader=OptionReader.PRESET,
        secret=True,
    )
    proxy: str = option(
        "http://127.0.0.1:${PORT}",
        "proxy",
        "address where the program listens",
        hint="URL",
        reader=OptionReader.PRESET,
    )
    health: str = option(
        "/health",
        "health",
        "path that returns 200 when the program is ready; none: an accepted connection is enough",
        hint="PATH",
        reader=OptionReader.PRESET,
    )
    load_timeout: float = option(
        600.0,
        "load-timeout",
        "seconds that the program has to become ready",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits={"gt": 0},
    )
    restart_after_errors: int = option(
        5,
        "restart-after-errors",
        "number of answers in a row with a status of 500 or more, other than 501, after which the program is restarted "
        "although its health path returns 200; 0: never",
        hint="N",
        reader=OptionReader.PRESET,
        limits=within(ge=0),
    )
    use_model_name: str = option(
        "",
        "use-model-name",
        "the program's name of the model, which replaces our name in requests; answers always have our name",
        hint="NAME",
        reader=OptionReader.PRESET,
    )
    memory: OptionalSize = option(
        0, "memory", "host memory that the program uses; 0: unknown", hint="SIZE", reader=OptionReader.PRESET
    )
    device_memory: DeviceSizes = option(
        (0,),
        "device-memory",
        "device memory that the program uses, for each device in order (24G,16G) or the sum; 0: unknown",
        hint="SIZES",
        reader=OptionReader.PRESET,
    )
