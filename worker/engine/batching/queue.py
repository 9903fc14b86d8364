"""The jobs that wait for slots, and the order in which they get them. Owned by the engine thread.

Slots are shared fairly: first between clients, then between the requests of a client, then by arrival. So a request
with many prompts delays each other request by at most one of its prompts for each slot.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from msgspec import Struct

from .jobs import Job


class WaitingFacts(NamedTuple):
    """The properties of a waiting job that decide when it gets a slot."""

    client: str
    request: int
    arrived: int


class Served(Struct, frozen=True):
    """The jobs in slots, and when a job of each client and of each request last got one; on the clock of arrivals."""

    running: Sequence[tuple[str, int]] = ()  # client and request of each
    clients: dict[str, int] = {}
    requests: dict[int, int] = {}


def fair_order(waiting: Sequence[WaitingFacts], served: Served) -> list[int]:
    """Return the indexes of the waiting jobs in the order in which they get slots.

    A client, or request, with fewer jobs in slots is first; of several, the one that has waited longest since it last
    got a slot or, if that is later, since its first waiting job arrived. So none of them waits forever.
    """
    by_request: dict[tuple[str, int], list[int]] = {}
    for i in sorted(range(len(waiting)), key=lambda i: waiting[i].arrived):
        by_request.setdefault((waiting[i].client, waiting[i].request), []).append(i)
    by_client: dict[str, list[list[int]]] = {}
    for (client, _), jobs in by_request.items():
        by_client.setdefault(client, []).append(jobs)
    n_of_request = Counter(request for _, request in served.running)
    queues = {
        client: _in_turns(
            [
                (n_of_request[request := waiting[jobs[0]].request], served.requests.get(request, -1), jobs)
                for jobs in requests
            ],
            waiting,
        )
        for client, requests in by_client.items()
    }
    n_of_client = Counter(client for client, _ in served.running)
    return _in_turns(
        [(n_of_client[client], served.clients.get(client, -1), jobs) for client, jobs in queues.items()], waiting
    )


def _in_turns(queues: Iterable[tuple[int, int, list[int]]], waiting: Sequence[WaitingFacts]) -> list[int]:
    """Merge queues of jobs; each has a number of jobs in slots and the time when one last got one."""
    ranked: list[tuple[int, int, int, int]] = []
    for n_running, last_served, jobs in queues:
        since = max(last_served, min(waiting[i].arrived for i in jobs))
        ranked += [(n_running + position, since, waiting[i].arrived, i) for position, i in enumerate(jobs)]
    return [i for *_, i in sorted(ranked)]


class JobQueue:
    """The waiting jobs. Iterates in order of arrival."""

    def __init__(self) -> None:
        self._jobs: dict[Job, int] = {}  # when each arrived
        self._clients: dict[str, int] = {}  # when one of its jobs last got a slot
        self._requests: dict[int, int] = {}
        self._clock = itertools.count()

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def add(self, job: Job) -> None:
        self._jobs[job] = next(self._clock)

    def discard(self, job: Job) -> None:
        """Remove a job that may be waiting."""
        if self._jobs.pop(job, None) is not None and not self._jobs:
            self.clear()

    def serve(self, job: Job) -> None:
        """Remove a job that gets its slots now."""
        now = next(self._clock)
        self._clients[job.share.client], self._requests[job.share.request] = now, now
        self.discard(job)

    def clear(self) -> None:
        """Remove all. Times of service are not kept either: later jobs arrive after them."""
        self._jobs.clear()
        self._clients.clear()
        self._requests.clear()

    def in_order(self, running: Iterable[Job]) -> list[Job]:
        """Return the jobs in the order in which they get slots. Those that need a certain slot are first."""
        if len(self._jobs) < 2:
            return list(self._jobs)
        self._forget_old()
        bound = [job for job in self._jobs if job.id_slot >= 0]
        free = [job for job in self._jobs if job.id_slot < 0]
        facts = [WaitingFacts(job.share.client, job.share.request, self._jobs[job]) for job in free]
        busy = [(job.share.client, job.share.request) for job in running]
        order = fair_order(facts, Served(busy, self._clients, self._requests))
        return bound + [free[i] for i in order]

    def _forget_old(self) -> None:
        """Forget when requests and clients without waiting jobs were served: their next jobs arrive later."""
        if len(self._requests) > 2 * len(self._jobs):
            waiting = {job.share.request for job in self._jobs}
            clients = {job.share.client for job in self._jobs}
            self._requests = {request: at for request, at in self._requests.items() if request in waiting}
            self._clients = {client: at for client, at in self._clients.items() if client in clients}
