"""Slots are shared fairly between clients and between requests."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from llama_corral.worker.engine.batching.jobs import Job
from llama_corral.worker.engine.batching.queue import JobQueue, Served, WaitingFacts, fair_order
from llama_corral.worker.engine.messages import Generation, Share


def job(number: int, request: int, client: str = "", id_slot: int = -1) -> Job:
    return Job(number, Generation((1,), id_slot=id_slot), print, Share(client, request))


def served_in_turn(queue: JobQueue, n_slots: int, n_steps: int) -> list[Share]:
    """Let each job finish in one step, and return whose jobs got slots."""
    found: list[Share] = []
    for _ in range(n_steps):
        running: list[Job] = []
        for job in queue.in_order(running)[:n_slots]:
            queue.serve(job)
            running.append(job)
            found.append(job.share)
    return found


def test_a_request_with_many_prompts_delays_another_by_one_prompt() -> None:
    queue = JobQueue()
    for number in range(1000):
        queue.add(job(number, request=1))
    assert [share.request for share in served_in_turn(queue, 1, 3)] == [1, 1, 1]
    queue.add(job(1000, request=2))
    assert 2 in [share.request for share in served_in_turn(queue, 1, 2)]


def test_many_requests_of_one_client_delay_another_client_by_one_request() -> None:
    queue = JobQueue()
    for number in range(1000):
        queue.add(job(number, request=number, client="busy"))
    served_in_turn(queue, 1, 3)
    queue.add(job(1000, request=1000, client="other"))
    assert Share("other", 1000) in served_in_turn(queue, 1, 2)


def test_without_competition_the_order_is_that_of_arrival() -> None:
    queue = JobQueue()
    for number in range(20):
        queue.add(job(number, request=number))
    assert [share.request for share in served_in_turn(queue, 3, 7)] == list(range(20))


def test_new_clients_do_not_overtake_those_that_wait() -> None:
    queue = JobQueue()
    queue.add(job(0, request=0, client="first"))
    queue.add(job(1, request=1, client="first"))
    for number in range(2, 50):
        queue.add(job(number, request=number, client=f"new{number}"))
        served_in_turn(queue, 1, 1)
    assert Share("first", 1) not in [waiting.share for waiting in queue]


def test_jobs_for_a_certain_slot_are_first() -> None:
    queue = JobQueue()
    jobs = [job(0, 0), job(1, 1), job(2, 2, id_slot=1)]
    for waiting in jobs:
        queue.add(waiting)
    assert queue.in_order([]) == [jobs[2], jobs[0], jobs[1]]
    queue.discard(jobs[2])
    queue.discard(jobs[2])
    assert len(queue) == 2


facts = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4))).map(
    lambda shares: [WaitingFacts(client, ord(client) * 10 + request, i) for i, (client, request) in enumerate(shares)]
)


@given(facts, st.integers(1, 8))
def test_the_first_slots_go_to_as_many_clients_as_possible(waiting: list[WaitingFacts], n: int) -> None:
    order = fair_order(waiting, Served())
    assert sorted(order) == list(range(len(waiting)))
    given_to = Counter(waiting[i].client for i in order[:n])
    left = {waiting[i].client for i in order[n:]}
    if left:
        assert max(given_to.values()) <= 1 + min(given_to[client] for client in left)


@given(facts)
def test_jobs_in_slots_count(waiting: list[WaitingFacts]) -> None:
    order = fair_order(waiting, Served(running=[("a", 1)] * len(waiting)))
    clients = [waiting[i].client for i in order]
    assert clients[len(clients) - clients.count("a") :] == ["a"] * clients.count("a")
