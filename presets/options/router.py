"""The option table, part six: the router's models, and the keys that only a presets file knows."""

from __future__ import annotations

from .option import OptionGroup, OptionReader, option, within
from .values import AUTO_LIMIT, DeviceLimits, DeviceSizes, MemoryLimit, OptionalSize, Switch


class RouterOptions(OptionGroup):
    title = "Router"

    models_dir: str = option(
        "",
        "--models-dir",
        "directory of models: *.gguf, or a sub-directory for each",
        env="MODELS_DIR",
        hint="DIR",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_preset: str = option(
        "",
        "--models-preset",
        "presets file that describes models",
        env="MODELS_PRESET",
        hint="FILE",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_max: int = option(
        4,
        "--models-max",
        "models in memory at once; 0: no limit",
        env="MODELS_MAX",
        hint="N",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=0),
    )
    models_memory: MemoryLimit = option(
        AUTO_LIMIT,
        "--models-memory",
        "memory of the machine for all models; auto: what is free; off: do not count",
        env="MODELS_MEMORY",
        hint="SIZE",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_device_memory: DeviceLimits = option(
        (AUTO_LIMIT,),
        "--models-device-memory",
        "as --models-memory, of each device in turn (24G,16G; those that are not named: auto); one number is for all "
        "devices together and shared out by their sizes",
        env="MODELS_DEVICE_MEMORY",
        hint="SIZES",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_memory_margin: int = option(
        1024,
        "--models-memory-margin",
        "MiB of the machine's memory and of each device's that auto leaves to others",
        env="MODELS_MEMORY_MARGIN",
        hint="MIB",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=0),
    )
    models_autoload: Switch = option(
        True,
        "--models-autoload",
        "load a model when a request names it",
        env="MODELS_AUTOLOAD",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_ttl: float = option(
        0.0,
        "--models-ttl",
        "seconds after which a model that nobody uses is unloaded, unless its preset has a ttl; 0: never",
        env="MODELS_TTL",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=0),
    )
    worker_timeout: float = option(
        300.0,
        "--worker-timeout",
        "seconds after which a worker that hangs is ended: one that gives no sign of life, or whose requests do not "
        "get on though it does not compute, or a program (cmd) that does not answer its health path; 0: never, less "
        "than 6 counts as 6",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=0),
    )
    stream_open_after: float = option(
        30.0,
        "--stream-open-after",
        "seconds that a stream waits for its model with a silent line; then it gets status 200 and comments, as often "
        "as --sse-ping-interval says, and errors are events. -1: never",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=-1),
    )
    stream_load_progress: Switch = option(
        False,
        "--stream-load-progress",
        "in the stream of a chat that waits, thoughts (reasoning_content) tell what for and how far a load is",
        reader=OptionReader.ROUTER,
        router_own=True,
    )
    models_max_wait: float = option(
        0.0,
        "--models-max-wait",
        "seconds after which a model that waits for its place goes before higher priorities and minimum stays, and "
        "models in use finish what they have and leave for it; 0: 60, and models in use stay",
        env="MODELS_MAX_WAIT",
        hint="SECONDS",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=0),
    )
    models_queue: int = option(
        0,
        "--models-queue",
        "requests that may wait for models, all together; more are refused with 503; 0: no bound",
        env="MODELS_QUEUE",
        hint="N",
        reader=OptionReader.ROUTER,
        router_own=True,
        limits=within(ge=0),
    )
    models_parallel_loads: int = option(
        2,
        "--models-parallel-loads",
        "models that load at once for the queue, where there are places and memory for all",
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
        "seconds that a stopping model has before it is killed",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits=within(ge=0),
    )
    pin: Switch = option(
        False, "pin", "never evict or unload the model unless it is asked for by name", reader=OptionReader.PRESET
    )
    ttl: float = option(
        -1.0,
        "ttl",
        "seconds after which the model is unloaded when nobody uses it; 0: never; -1: as --models-ttl says",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits=within(ge=-1),
    )
    priority: int = option(
        0,
        "priority",
        "among models that wait for a place the highest is next; of idle ones the lowest leaves first",
        hint="N",
        reader=OptionReader.PRESET,
    )
    min_stay: float = option(
        0.0,
        "min-stay",
        "seconds for which the model, once loaded, is not evicted for others",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits=within(ge=0),
    )
    group: str = option(
        "",
        "group",
        "group of the model: its members exclude each other, or do what the section [group:NAME] says",
        hint="NAME",
        reader=OptionReader.PRESET,
    )
    max_queue: int = option(
        0,
        "max-queue",
        "requests that may wait for the model; more are refused with 503; 0: no bound",
        hint="N",
        reader=OptionReader.PRESET,
        limits=within(ge=0),
    )
    concurrency: int = option(
        0,
        "concurrency",
        "requests that the model gets at once; more wait their turn; 0: as many as come",
        hint="N",
        reader=OptionReader.PRESET,
        limits=within(ge=0),
    )
    concurrency_refuse: Switch = option(
        False,
        "concurrency-refuse",
        "refuse requests beyond concurrency with 429 instead of letting them wait",
        reader=OptionReader.PRESET,
    )
    keep_warm: Switch = option(
        False,
        "keep-warm",
        "load the model when the router starts, and again after it failed or was evicted, where there is room and "
        "nobody waits; --models-ttl is not for it",
        reader=OptionReader.PRESET,
    )
    dedup_cache_models: Switch = option(
        False, "dedup-cache-models", "hide cached models that are the same file as this one", reader=OptionReader.PRESET
    )
    base: str = option(
        "",
        "base",
        "name of the model whose worker serves this section too; the section sets only what a request could say",
        hint="NAME",
        reader=OptionReader.PRESET,
    )
    system_prompt: str = option(
        "",
        "system-prompt",
        "system message of chats that bring none",
        hint="TEXT",
        reader=OptionReader.PRESET,
    )


class BackendOptions(OptionGroup):
    title = "Only in a presets file: another program serves the model"

    cmd: str = option(
        "",
        "cmd",
        "command line of a program that serves the model over HTTP instead of our worker; ${PORT} is a free port, "
        "${MODEL} the model's file, ${MODEL_ID} the section's name, ${env.X} a variable; no shell reads it",
        hint="COMMAND",
        reader=OptionReader.PRESET,
    )
    cmd_stop: str = option(
        "",
        "cmd-stop",
        "command that stops it; without one it gets SIGTERM; ${PID} is its process",
        hint="COMMAND",
        reader=OptionReader.PRESET,
    )
    env: str = option(
        "",
        "env",
        "variables for it: NAME=VALUE, separated by blanks, in quotes where needed",
        hint="VARIABLES",
        reader=OptionReader.PRESET,
        secret=True,
    )
    proxy: str = option("http://127.0.0.1:${PORT}", "proxy", "where it listens", hint="URL", reader=OptionReader.PRESET)
    health: str = option(
        "/health",
        "health",
        "path that answers 200 once it is ready; none: connecting is enough",
        hint="PATH",
        reader=OptionReader.PRESET,
    )
    load_timeout: float = option(
        600.0,
        "load-timeout",
        "seconds that it has to become ready",
        hint="SECONDS",
        reader=OptionReader.PRESET,
        limits={"gt": 0},
    )
    use_model_name: str = option(
        "",
        "use-model-name",
        "what it calls the model: put into requests in the place of our name",
        hint="NAME",
        reader=OptionReader.PRESET,
    )
    memory: OptionalSize = option(
        0, "memory", "what it takes of the machine's memory; 0: unknown", hint="SIZE", reader=OptionReader.PRESET
    )
    device_memory: DeviceSizes = option(
        (0,),
        "device-memory",
        "what it takes of the devices' memory, of each in turn (24G,16G) or of all together; 0: unknown",
        hint="SIZES",
        reader=OptionReader.PRESET,
    )
