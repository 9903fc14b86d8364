"""The reducer alone, without an event loop: events in, effects out."""

from __future__ import annotations

import pytest
from lifecycle_tools import GIB, SizedBudget
from llama_corral.common.base.errors import ApiError, ServerFault
from llama_corral.router.models.queue import Lease, LeaseRequest
from llama_corral.router.placement.placement import PlacementRules
from llama_corral.router.reducer import effects as does
from llama_corral.router.reducer import events
from llama_corral.router.reducer.effects import REVIEW, Effect
from llama_corral.router.reducer.reducer import HANDLERS, event_table
from llama_corral.router.reducer.state import describe
from memory_workers import InProcessLauncher
from router_tools import preset, presets
from synchronous_router import SynchronousRouter


class Recorder(SynchronousRouter):
    """Keeps the effects. The clock stands still until a test moves it."""

    def __init__(self, *, models_max: int = 1, ttl: float = 0.0) -> None:
        self.now = 100.0
        self.launcher = InProcessLauncher()
        self.carried_out: list[Effect] = []
        entries = presets(preset("a", ttl=ttl), preset("b"))
        budget = SizedBudget(10 * GIB, a=1, b=1)
        super().__init__(
            entries, self.launcher, budget, lambda: self.now, models_max=models_max, rules=PlacementRules()
        )

    def carry_out(self, effect: Effect) -> None:
        self.carried_out.append(effect)
        super().carry_out(effect)

    def request(self, model: str) -> LeaseRequest:
        request = LeaseRequest(model)
        self.put(events.RequestArrived, request)
        return request

    @property
    def names(self) -> list[str]:
        return [type(effect).__name__ for effect in self.carried_out]


def trip() -> Recorder:
    """A request for `a`, then one for `b` that evicts it."""
    router = Recorder()
    first = router.request("a")
    router.deliver_estimates()
    router.launcher["a"].ready()
    router.put(events.LeaseReleased, first, True)
    second = router.request("b")
    router.deliver_estimates()
    router.launcher["a"].leave()
    router.launcher["b"].ready()
    assert isinstance(router.answers[second][0], Lease)
    return router


def test_a_request_and_an_eviction_as_effects() -> None:
    assert trip().names == [
        *("EstimateMemory", "StartWorker", "Publish", "Publish", "Grant"),
        *("EstimateMemory", "StopWorker", "SetTimer", "SetTimer"),  # of the worker's exit, and of the longest wait
        *("CancelTimer", "Publish", "StartWorker", "CancelTimer", "Publish", "Publish", "Grant"),
    ]


def test_the_same_events_have_the_same_effects() -> None:
    first, second = trip(), trip()
    assert first.names == second.names
    assert first.published == second.published
    assert describe(first.state, first.now) == describe(second.state, second.now)


def test_each_request_is_refused_with_a_separate_exception() -> None:
    router = Recorder()
    requests = [router.request("a") for _ in range(3)]
    router.deliver_estimates()
    router.launcher["a"].exit(1)
    errors = [router.answers[request][0] for request in requests]
    assert all(isinstance(error, ServerFault) for error in errors)
    assert len({id(error) for error in errors}) == 3


def test_a_lease_of_a_client_that_has_left_is_released() -> None:
    router = Recorder()
    request = router.request("a")
    router.deliver_estimates()
    router.launcher["a"].ready()
    router.put(events.ClientLeft, request)
    router.put(events.ClientLeft, request)
    router.put(events.LeaseReleased, request, True)
    view = router.view("a")
    assert view is not None
    assert (view.leases, router.state.leases) == (0, {})


def test_a_client_that_leaves_during_the_estimate_loads_nothing() -> None:
    router = Recorder()
    router.put(events.ClientLeft, router.request("a"))
    router.deliver_estimates()
    assert router.names == ["EstimateMemory"]


def test_an_explicit_load_evicts_and_is_answered_when_its_worker_has_started() -> None:
    router = Recorder()
    router.ask(events.LoadRequested, "load a", "a")
    router.deliver_estimates()
    router.launcher["a"].ready()
    load = router.ask(events.LoadRequested, "load b", "b")
    router.deliver_estimates()
    assert not router.answers[load]
    router.launcher["a"].leave()
    assert router.answers[load] == [None]
    refused = router.ask(events.LoadRequested, "load b", "b")
    (error,) = router.answers[refused]
    assert isinstance(error, ApiError)
    assert error.message == "model is already running"


def test_the_review_timer_is_set_for_a_ttl_and_cancelled_without_one() -> None:
    router = Recorder(ttl=60.0)
    router.ask(events.LoadRequested, "load a", "a")
    router.deliver_estimates()
    router.launcher["a"].ready()
    assert router.timers == {REVIEW: 160.0}
    request = router.request("a")
    assert REVIEW not in router.timers, "a busy model does not expire"
    router.now = 130.0
    router.put(events.LeaseReleased, request, True)
    assert router.timers == {REVIEW: 190.0}
    router.now = 190.0
    router.fire_timers(router.now)
    assert router.launcher["a"].stop_asked


def test_a_reload_ends_when_the_changed_worker_has_exited() -> None:
    router = Recorder(models_max=0)
    router.ask(events.LoadRequested, "load a", "a")
    router.deliver_estimates()
    router.launcher["a"].ready()
    first = router.ask(events.ReloadRequested, "reload", presets(preset("a", "other")))
    second = router.ask(events.ReloadRequested, "reload", presets(preset("c")))
    assert not router.answers[first]
    router.launcher["a"].leave()
    assert router.answers[first] == router.answers[second] == [None]
    assert [view.name for view in router.views()] == ["c"]
    reloads = [effect for effect in router.published if effect == does.Publish("*", "models_reload")]
    assert len(reloads) == 2


def test_every_event_has_a_handler() -> None:
    kinds = {kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)}
    assert set(HANDLERS) == kinds - {events.Event}
    assert all(row.count("|") == 4 for row in event_table().splitlines())
    assert "|  |" not in event_table()


def test_an_edit_during_the_estimate_of_memory_leads_to_a_second_one() -> None:
    router = Recorder()
    request = router.request("a")
    edited = preset("a", "other")
    router.ask(events.ReloadRequested, "reload", presets(edited, preset("b")))
    router.deliver_estimates()
    assert [effect.preset for effect in router.estimates] == [edited]
    router.deliver_estimates()
    router.launcher["a"].ready()
    assert isinstance(router.answers[request][0], Lease)


def test_an_edit_that_breaks_the_section_during_the_estimate_refuses_the_request() -> None:
    router = Recorder()
    request = router.request("a")
    router.ask(events.ReloadRequested, "reload", presets(preset("a", unavailable="no model"), preset("b")))
    router.deliver_estimates()
    (error,) = router.answers[request]
    assert isinstance(error, ServerFault)
    assert error.message == "model 'a' cannot be loaded: no model"
    assert not router.estimates


def test_a_model_that_was_removed_and_added_again_is_estimated_again() -> None:
    router = Recorder()
    request = router.request("a")
    router.ask(events.ReloadRequested, "reload", presets(preset("b")))
    router.ask(events.ReloadRequested, "reload", presets(preset("a"), preset("b")))
    router.deliver_estimates()
    assert "StartWorker" not in router.names, "the memory of the new model is not known yet"
    router.deliver_estimates()
    router.launcher["a"].ready()
    assert isinstance(router.answers[request][0], Lease)


def test_a_request_for_a_model_that_was_removed_is_refused() -> None:
    router = Recorder()
    request = router.request("a")
    router.ask(events.ReloadRequested, "reload", presets(preset("b")))
    router.deliver_estimates()
    (error,) = router.answers[request]
    assert isinstance(error, ApiError)
    assert error.message == "model 'a' not found"


@pytest.mark.parametrize("is_busy", [False, True])
def test_requests_for_a_removed_model_are_served_by_the_model_that_has_its_name_now(is_busy: bool) -> None:
    router = Recorder()
    waiting = running = router.request("a")
    router.deliver_estimates()
    if is_busy:
        router.launcher["a"].ready()
    router.ask(events.ReloadRequested, "reload", presets(preset("b", aliases=("a",))))
    if is_busy:
        waiting = router.request("a")
        router.put(events.LeaseReleased, running, True)
    router.launcher["a"].leave()
    router.deliver_estimates()
    router.launcher["b"].ready()
    (lease,) = router.answers[waiting]
    assert isinstance(lease, Lease)
    assert lease.model == "b"
