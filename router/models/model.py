"""The router's records of each model and of the worker that runs it, and the copies that other parts may read.

The records are mutable, but only `reducer` writes them. `ModelView` is a frozen copy for the handlers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llama_corral.common.base.errors import ApiError, ServerFault
from llama_corral.common.base.worker_reports import MemoryUsage
from llama_corral.presets.merge import ConfigValue
from llama_corral.presets.options.option import Option
from llama_corral.presets.options.table import VARIABLES
from llama_corral.presets.render import to_argv
from msgspec import Struct, field

from ..placement.device_split import Need
from ..placement.memory_amounts import NOTHING, Space
from ..placement.snapshot import Resident, Retention
from ..placement.states import ModelState, transition
from ..process.launcher import LaunchSpec, RunningWorker
from . import exit_reasons
from .backoff import NO_FAILURES, FailureBackoff
from .exit_reasons import exit_cause, exit_description

if TYPE_CHECKING:
    from llama_corral.presets.preset import Preset

OWN_OPTIONS = frozenset({"host", "port", "alias"})
"""Options that the router sets for each worker; a preset's values have no effect."""
_SECRETS = {
    spelling.entry.field: variable
    for variable, spelling in VARIABLES.items()
    if isinstance(spelling.entry, Option) and spelling.entry.secret
}


class Instance(Struct, eq=False):
    """One worker process of a model, from its start until the process is reaped."""

    name: str
    """The model's."""
    worker: RunningWorker | None = None
    """Shows pid, address and arguments; None until the process exists."""
    leases: int = 0
    requests: int = 0
    """Number of the leases that count as use of the model."""
    displayed_state: ModelState = ModelState.LOADING
    """State that clients see while the instance is stopping."""
    is_retiring: bool = False
    """True if its preset was changed or removed: it finishes its requests and accepts no new ones."""
    retirement_reason: str = ""
    """What happened to its preset, if it is retiring."""
    next_fault: str = ""
    """Why the model cannot be loaded after it, if its section has a fault now; else empty."""
    preemption_reason: str = ""
    """Why it is pre-empted: it finishes its requests and accepts no new ones, with an unchanged preset; else empty."""
    errors: int = 0
    """Number of the last answers of an external program that were errors of the server, in a row."""
    is_broken: bool = False
    """True if these were too many: it finishes its requests and accepts no new ones."""
    stop_reason: str = ""
    """Why the router stops it; empty while it does not."""
    failure: str = ""
    """Why it will exit, as the worker reported it; after the exit the complete reason."""
    is_fault: bool = False
    """True if it ended with an error and without a request to stop."""
    ran_out_of_memory: bool = False
    """True if the fault may have been caused by a lack of memory."""
    kernel_oom_kills: int = 0
    """The kernel's count of killed processes when this one was started."""
    idle_since: float = 0.0
    """When its last use ended or it became ready, on the lifecycle's clock; 0: it was never ready."""
    requested_retention: Retention | None = None
    """Set by a request; overrides the preset's retention."""
    started: float = 0.0
    ready_since: float = 0.0
    space: Space = NOTHING
    """Memory that it uses: estimated when it was started, measured after the load."""
    private_bytes: int | None = None
    """Private memory of its process when it became ready; growth since then comes from its requests."""
    is_gone: bool = False
    """True when the process was reaped and all that follows from its end is done."""

    @property
    def is_draining(self) -> bool:
        """True if it stops as soon as its requests have ended."""
        return self.is_retiring or self.is_broken or bool(self.preemption_reason)

    @property
    def pid(self) -> int | None:
        return None if self.worker is None else self.worker.pid

    def __repr__(self) -> str:
        marks = [
            mark
            for mark, holds in (("retiring", self.is_retiring), ("broken", self.is_broken), ("gone", self.is_gone))
            if holds
        ]
        marks += [f"pre-empted: {self.preemption_reason}"] if self.preemption_reason else []
        return f"<Instance {self.name} pid {self.pid}, {self.leases} leases{', '.join(['', *marks])}, {self.space}>"


class Model(Struct, eq=False):
    name: str
    preset: Preset
    state: ModelState = ModelState.UNLOADED
    instance: Instance | None = None
    last_used: float = 0.0
    exit_code: int = 0
    info: dict[str, Any] = field(default_factory=dict)
    """The worker's `/v1/models` entry, from its first ready report on."""
    progress: dict[str, Any] = field(default_factory=dict)
    failure: str = ""
    backoff: FailureBackoff = NO_FAILURES
    is_retried: bool = False
    """True if its load ran out of memory and is tried once more."""
    is_unload_requested: bool = False
    """True if it was unloaded by `POST /models/unload` or after its `ttl`: only a request loads it again."""
    is_reload_due: bool = False
    """True if a changed preset ended its load, or its worker although it is marked load-on-startup: it is loaded again
    without a request, as soon as there is room."""
    last_lines: tuple[str, ...] = ()
    command_line: tuple[str, ...] = ()
    """Of its latest worker, or what the next one gets."""
    idle_command_line: tuple[str, ...] = ()
    """What the next worker gets, without its address."""
    need: Need | None = None
    """Memory that a load needs; None: unknown until it was loaded."""
    is_need_outdated: bool = False
    """True if `need` was estimated or measured with an earlier preset."""
    expected: Space | None = None
    """The same for display: on devices without other models; while it runs, where it was placed."""
    measured: MemoryUsage | None = None
    """Memory used by its latest load."""
    load_seconds: float = 1.0
    """Duration of its latest load."""

    def __repr__(self) -> str:
        failed = f", {self.backoff.count} failures in a row" if self.backoff.count else ""
        return f"<Model {self.name} {self.state.value}{failed}, {self.instance or 'no worker'}>"

    @property
    def fault(self) -> str:
        """Why its preset cannot be used, as `file:line: …`; "": it can be used.

        A running worker does not need its files any more.
        """
        next_fault = self.instance.next_fault if self.instance is not None else ""
        needs_files = self.instance is None or self.state is ModelState.STOPPING
        return self.preset.unavailable or next_fault or (self.preset.missing_file if needs_files else "")

    @property
    def unavailability(self) -> ServerFault | None:
        """The error for everything that needs the model, if its preset cannot be used; None if it can."""
        fault = self.fault
        return ServerFault(f"model '{self.name}' cannot be loaded: {fault}") if fault else None

    @property
    def takes_requests(self) -> bool:
        return self.state.is_ready and self.instance is not None and not self.instance.is_draining

    @property
    def loads_without_request(self) -> bool:
        """True if it is loaded when there is room: it is to be kept warm, or it is due to be loaded again."""
        is_wanted = self.preset.policy.keep_warm or self.is_reload_due
        return is_wanted and not (self.is_unload_requested or self.fault)

    @property
    def needs_warm_load(self) -> bool:
        return self.loads_without_request and self.state.is_down

    @property
    def retention(self) -> Retention:
        if self.instance is not None and self.instance.requested_retention is not None:
            return self.instance.requested_retention
        return Retention(self.preset.ttl or None, self.preset.pin)

    @property
    def may_expire(self) -> bool:
        """True if its `retention` has a `ttl`. Evaluated for each running model after every event, so it is cheap."""
        requested = None if self.instance is None else self.instance.requested_retention
        return bool(self.preset.ttl) if requested is None else requested.ttl is not None

    @property
    def displayed_state(self) -> ModelState:
        if self.state is ModelState.FAILED:
            return ModelState.UNLOADED
        if self.state is ModelState.STOPPING and self.instance is not None:
            return self.instance.displayed_state
        return self.state

    def transition_to(self, new: ModelState) -> None:
        self.state = transition(self.state, new)

    def record_failure(self, now: float, idle_since: float | None) -> None:
        self.backoff = self.backoff.after_failure(now, None if idle_since is None else now - idle_since)

    def refusal(self, now: float) -> ApiError | None:
        """Return the error for requests during the back-off; None if the model may be loaded."""
        if not self.state.is_down or not self.backoff.pause(now):
            return None
        return self.backoff.refusal(self.name, self.failure, now)


class ModelView(Struct, frozen=True):
    """Everything that `GET /models` and the web page need."""

    name: str
    preset: Preset
    """Provides aliases, tags, source, modalities, the INI text and `hidden`."""
    status: str
    is_running: bool
    is_failed: bool
    """True if its last run failed, or if its preset cannot be used."""
    exit_code: int
    """1 for a preset that cannot be used: for clients of llama-server, 0 is success."""
    failure: str
    """Why it failed, or cannot be loaded; of a running model why it cannot be loaded again; else empty."""
    fault: str
    """Why its preset cannot be used now, as `file:line: …`; "": it can be used."""
    failures: int
    """Number of failures in a row."""
    errors: int
    """Number of the last answers of an external program that were errors of the server, in a row."""
    pause: float
    """Remaining back-off in seconds, in which requests are refused."""
    last_lines: tuple[str, ...]
    """The end of its log if it failed; else empty."""
    command_line: tuple[str, ...]
    info: dict[str, Any]
    """The worker's `/v1/models` entry while it runs; empty before it was ready."""
    input_modalities: tuple[str, ...]
    """As its latest worker reported them; before the first load, what its files show."""
    progress: dict[str, Any]
    leases: int
    waiting: int
    pid: int | None
    is_pinned: bool
    """True if it runs and may not be evicted."""
    is_kept: bool
    """True if it runs and is evicted only as the last choice, because a request asked for it."""
    expires_in: float | None
    """Seconds until it is unloaded if it is not used from now on; None: it is kept."""
    expected: Space | None
    """Bytes, estimated or measured earlier; None: unknown."""
    measured: MemoryUsage | None
    """Bytes, of the running worker."""

    @property
    def is_usable(self) -> bool:
        """False if requests are refused because its preset cannot be used."""
        return not self.fault


def resident_of(model: Model, space: Space = NOTHING) -> Resident:
    """Return the model as placement sees it; a draining instance counts as stopping."""
    instance = model.instance
    is_leaving = instance is not None and instance.is_draining
    return Resident(
        model.name,
        ModelState.STOPPING if is_leaving else model.state,
        leases=instance.leases if instance else 0,
        last_used=model.last_used,
        idle_since=instance.idle_since if instance else 0.0,
        retention=model.retention,
        space=space,
        need=model.need,
        load_seconds=model.load_seconds,
        policy=model.preset.policy,
        ready_since=instance.ready_since if instance else 0.0,
        warm_from=model.backoff.paused_until if model.loads_without_request else None,
        expected=model.expected,
    )


def view_of(model: Model, waiting: int, now: float, variant: Preset | None = None) -> ModelView:
    """Return what handlers may see of the model; `variant`: show it under this variant of it."""
    preset = variant or model.preset
    is_failed = model.state is ModelState.FAILED
    fault = preset.unavailable or model.fault
    is_unavailable = bool(fault) and not model.state.is_running
    return ModelView(
        name=preset.name if variant else model.name,
        preset=preset,
        status=model.displayed_state.value,
        is_running=model.state.is_running,
        is_failed=is_failed or is_unavailable,
        exit_code=1 if is_unavailable else model.exit_code if is_failed else 0,
        failure=f"cannot be loaded: {fault}" if fault else model.failure if is_failed else "",
        fault=fault,
        failures=model.backoff.count,
        errors=model.instance.errors if model.instance else 0,
        pause=model.backoff.pause(now),
        last_lines=model.last_lines if is_failed else (),
        command_line=model.command_line,
        info=model.info if model.state.is_running else {},
        input_modalities=tuple(model.info.get("architecture", {}).get("input_modalities", preset.input_modalities)),
        progress=dict(model.progress) if model.state in (ModelState.LOADING, ModelState.DOWNLOADING) else {},
        leases=model.instance.leases if model.instance else 0,
        waiting=waiting,
        pid=model.instance.pid if model.instance else None,
        is_pinned=resident_of(model).is_pinned,
        is_kept=model.state.is_running and model.retention.kept,
        expires_in=_expires_in(model, now),
        expected=model.expected,
        measured=model.measured if model.state.is_running else None,
    )


def _expires_in(model: Model, now: float) -> float | None:
    expires_at = None if model.instance is None else resident_of(model).expires_at
    if expires_at is not None:
        return max(0.0, expires_at - now)
    return None if model.retention.pinned else model.retention.ttl


def launch_spec(preset: Preset) -> LaunchSpec:
    """Return a worker's options, without the address, which the launcher adds.

    Secrets are passed in the environment, because other users can read the arguments.
    """
    if preset.backend is not None:
        return LaunchSpec(preset.name, preset.backend.command, dict(preset.backend.environ), preset.backend)
    layer = {name: given for name, given in preset.layer.items() if name not in OWN_OPTIONS | set(_SECRETS)}
    environ = {_SECRETS[name]: given.text for name, given in preset.layer.items() if name in _SECRETS}
    arguments = to_argv({**layer, "alias": ConfigValue(preset.name, "the router")})
    return LaunchSpec(preset.name, tuple(arguments), environ)


def command_line(command: tuple[str, ...], preset: Preset) -> tuple[str, ...]:
    """Return the command line to display while no worker runs; empty if it cannot be loaded.

    `command`: the start of the command line of llama-corral's workers.
    """
    if preset.unavailable:
        return ()
    arguments = launch_spec(preset).arguments
    return arguments if preset.backend is not None else (*command, *arguments)


def is_same_worker(old: Preset, new: Preset) -> bool:
    """Return True if a running worker fits `new`: changed names, tags and router settings need no restart."""
    if old.unavailable or new.unavailable:
        return False
    if old is new:
        return True
    if old.backend is not None or new.backend is not None:
        return old.backend is not None and new.backend is not None and old.backend.same_process(new.backend)
    return _texts(old) == _texts(new)


def _texts(preset: Preset) -> dict[str, str]:
    return {name: given.text for name, given in preset.layer.items() if name not in OWN_OPTIONS | {"tags"}}


def exit_code_of(returncode: int) -> int:
    """Return the exit code as llama-server reports it: 1 for every signal."""
    return returncode if returncode >= 0 else 1


def ran_out_of_memory(instance: Instance, returncode: int, last_lines: tuple[str, ...], kernel_oom_kills: int) -> bool:
    """`kernel_oom_kills`: the kernel's count at the end."""
    said = (*last_lines, instance.failure)
    return instance.is_fault and exit_reasons.ran_out_of_memory(
        returncode, said, kernel_oom_kills - instance.kernel_oom_kills
    )


def failure_reason(instance: Instance, returncode: int, last_lines: tuple[str, ...], kernel_oom_kills: int) -> str:
    """`kernel_oom_kills`: the kernel's count at the end."""
    if instance.failure:
        return instance.failure
    if not instance.is_fault:
        if returncode and instance.displayed_state is ModelState.LOADING:
            return f"it was stopped while it loaded: {instance.stop_reason}"
        return exit_description(returncode, last_lines)
    return exit_cause(returncode, last_lines, kernel_oom_kills - instance.kernel_oom_kills)
