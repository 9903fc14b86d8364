"""Drafts with the model's own MTP head, which predicts the next token from a token and the hidden state before it.

Owned by the engine thread through `speculative`. The head has a separate context. It computes the main model's tokens,
each with the hidden state of the previous token, after the main model has computed them. For a draft the head continues
with its own tokens and hidden states. If a hidden state is not saved (a prompt continues in the middle of an earlier
one, or after an image), zeros are used instead; this makes only drafts worse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from ...batching.decode import DecodedRows, PreparedBatch
from ...batching.jobs import GenerationTask
from ...batching.prefix import common_run
from ...batching.slots import Slot, SlotState
from ...llama.batch import HeadBatch
from ...llama.context import Context, HeadContext
from ...llama.model import Model
from ..drafter import DraftRequest
from .draft_model import most_likely
from .follower import Followers

HiddenState = NDArray[np.float32]

N_LANDMARKS = 32
"""Number of hidden states that are kept per sequence, at the ends of batches, because a prompt may continue there."""


class _SlotStates(Struct):
    """The hidden states of a slot that its follower has not used yet."""

    states: list[HiddenState] = field(default_factory=list)
    """The first one belongs to the follower's last token. Empty if that token was sampled but is not computed yet."""
    text: list[int] = field(default_factory=list)  # the tokens of the states after the first
    landmarks: dict[int, HiddenState] = field(default_factory=dict)  # hidden state of the n-th token, by n

    def remember(self, n: int, state: HiddenState) -> None:
        self.landmarks.pop(n, None)
        self.landmarks[n] = state.copy()
        if len(self.landmarks) > N_LANDMARKS:
            del self.landmarks[next(iter(self.landmarks))]

    def forget_after(self, n: int) -> None:
        self.landmarks = {place: state for place, state in self.landmarks.items() if place <= n}


class _HeadDraft(Struct):
    slot: Slot
    max_tokens: int
    row: int = -1
    drafted: list[int] = field(default_factory=list)


class DraftHead:
    def __init__(
        self, context: HeadContext, main: Context, n_max: int, n_min: int, p_min: float, model: Model | None = None
    ) -> None:
        """Take ownership of the head's context, and of `model` if the head is in a separate file."""
        self._context, self._main, self._model = context, main, model
        self.n_max, self._n_min, self._p_min = n_max, n_min, p_min
        n_slots = main.model.options.n_slots
        self._batch = HeadBatch(context.n_batch, context.n_hidden)
        self._following = Followers(context, n_slots, "MTP head")
        self._known = [_SlotStates() for _ in range(n_slots)]
        self._nothing = np.zeros(context.n_hidden, np.float32)

    def close(self) -> None:
        self._context.close()
        if self._model is not None:
            self._model.close()

    def begin(self, slot: Slot, history: list[int]) -> None:
        pass

    def accept(self, slot: Slot, n_drafted: int, n_accepted: int) -> None:
        pass

    # -- follow --------------------------------------------------------------------------------------------------------

    def on_computed(self, prepared: PreparedBatch, part: DecodedRows) -> None:
        """Copy the batch's hidden states, which the next batch overwrites, and compute the tokens of prompts."""
        if prepared.plan.kind != "generation":
            return
        states = self._main.hidden_states(part.end - part.begin)
        drafts = {run.slot.id: run for run in prepared.drafts}
        for row, slot in enumerate(prepared.streams[part.begin : part.end]):
            text, rows = [slot.tokens[-1]], [row]
            if (run := drafts.get(slot.id)) is not None:
                text += run.tokens
                rows += range(run.row - part.begin, run.row - part.begin + len(run.tokens))
            self._take(slot, len(slot.tokens) - 1, text, states[rows])
        prompts = []
        for each in prepared.prompts:
            begin, end = max(each.row, part.begin) - part.begin, min(each.row + each.n, part.end) - part.begin
            if begin < end:
                slot, n = each.slot, len(each.slot.tokens)
                self._take(slot, n - (end - begin), slot.tokens[n - (end - begin) :], states[begin:end].copy())
                self._set_landmarks(slot, states[begin:end])
                prompts.append(slot)
        self._advance(prompts)

    def catch_up(self, slots: Sequence[Slot], n_prompt_with_streams: int) -> None:
        """Compute accepted tokens.

        This cannot be done in one batch with a draft: if a batch has rows without output, llama.cpp returns the hidden
        states of the wrong rows.
        """
        self._advance([slot for slot in slots if slot.state is SlotState.GENERATING])

    def on_shifted(self, slot: Slot, begin: int, end: int) -> None:
        known = self._known[slot.id]
        known.forget_after(begin)
        if not self._following.shift(slot.id, begin, end):
            known.states, known.text = [], []

    def _take(self, slot: Slot, n_before: int, text: list[int], states: NDArray[np.float32]) -> None:
        """Save the hidden states (n_tokens, n_hidden) of `text`, which follows the slot's first `n_before` tokens."""
        task, follower, known = slot.task, self._following[slot.id], self._known[slot.id]
        if not isinstance(task, GenerationTask):
            return
        if follower.task is not task:
            self._recall(slot, task, n_before)
        if follower.gave_up:
            return
        if n_before < len(follower.tokens) - (not known.states):
            self._truncate(slot.id, n_before)
        n = len(follower.tokens)
        if n_before <= follower.first or n_before > n - 1 + len(known.states):
            self._following.restart(slot.id, slot.tokens[:n_before], slot.position_after(n_before))
            n, known.text = n_before, []
            known.states = [known.landmarks.get(n, self._nothing) if n else self._nothing]
        n_kept = n_before - n
        if n_kept < 0:  # the first state belongs to the follower's last token
            known.states, known.text = list(states), text[1:]
        else:
            known.states[n_kept + 1 :] = states
            known.text[n_kept:] = text

    def _recall(self, slot: Slot, task: GenerationTask, n: int) -> None:
        """Start on another prompt, of which the main model did not compute the first `n` tokens again."""
        id, known, text = slot.id, self._known[slot.id], slot.tokens[:n]
        source, n_there = self._following.recall(id, task, text)
        if source != id:
            other = self._known[source]
            known.states, known.text, known.landmarks = list(other.states), list(other.text), dict(other.landmarks)
        n_here = len(self._following[id].tokens)
        if n_here < n_there:
            self._resume(id, n_here)
        n_same = common_run(known.text, 0, text, n_here)
        del known.text[n_same:], known.states[n_same + 1 :]
        known.forget_after(n_here + n_same)

    def _truncate(self, id: int, n: int) -> None:
        self._following.truncate(id, n)
        self._resume(id, len(self._following[id].tokens))

    def _resume(self, id: int, n: int) -> None:
        known = self._known[id]
        known.states, known.text = [known.landmarks.get(n, self._nothing)], []
        known.forget_after(n)

    def _set_landmarks(self, slot: Slot, states: NDArray[np.float32]) -> None:
        """Save the states at the batch's end and before the prompt's last token, where a repeated prompt continues."""
        known, n = self._known[slot.id], len(slot.tokens)
        if slot.task is not None and n == len(slot.task.prompt) and len(states) > 1:
            known.remember(n - 1, states[-2])
        known.remember(n, states[-1])

    def _advance(self, slots: Iterable[Slot]) -> None:
        """Compute what the slots have computed."""
        waiting = [slot for slot in slots if self._n_missing(slot) > 0]
        while waiting:
            self._batch.clear()
            runs: list[tuple[Slot, int]] = []
            for slot in waiting:
                known, follower = self._known[slot.id], self._following[slot.id]
                n = min(self._n_missing(slot), self._batch.room)
                if n:
                    self._batch.add_states(known.states[:n])
                    self._batch.add_run(known.text[:n], follower.position, slot.id, output=False)
                    runs.append((slot, n))
            if not self._following.decode(self._batch, [slot.id for slot, _ in runs]):
                return
            for slot, n in runs:
                known = self._known[slot.id]
                self._following[slot.id].tokens += known.text[:n]
                del known.text[:n], known.states[:n]
                known.states[:1] = [state.copy() for state in known.states[:1]]  # a view would keep the whole batch
            waiting = [slot for slot in waiting if self._n_missing(slot) > 0]

    def _n_missing(self, slot: Slot) -> int:
        """Return the number of the slot's tokens that can be computed."""
        follower = self._following[slot.id]
        if follower.task is not slot.task or follower.gave_up:
            return 0
        return max(0, min(len(slot.tokens) - len(follower.tokens), len(self._known[slot.id].text)))

    # -- draft ---------------------------------------------------------------------------------------------------------

    def draft(self, requests: Sequence[DraftRequest]) -> list[list[int]]:
        attempts = [_HeadDraft(request.slot, min(request.max_tokens, self.n_max)) for request in requests]
        self._batch.clear()
        ahead = [attempt for attempt in attempts if self._begin(attempt)]
        first = ahead
        while ahead and self._following.decode(self._batch, [attempt.slot.id for attempt in ahead]):
            if ahead is first:
                for attempt in ahead:
                    self._settle(attempt.slot)
            guesses = [(attempt, self._context.hidden_state(attempt.row)) for attempt in ahead if self._guess(attempt)]
            self._batch.clear()
            for attempt, state in guesses:
                self._add(attempt, attempt.drafted[-1], state, len(attempt.drafted) - 1)
            ahead = [attempt for attempt, _ in guesses]
        for attempt in first:
            if not self._context.truncate(attempt.slot.id, self._following[attempt.slot.id].position):
                self._following.truncate(attempt.slot.id, 0)
        return [a.drafted if len(a.drafted) >= self._n_min else [] for a in attempts]

    def _begin(self, attempt: _HeadDraft) -> bool:
        slot = attempt.slot
        follower, known = self._following[slot.id], self._known[slot.id]
        if follower.task is not slot.task or follower.gave_up or attempt.max_tokens <= 0 or not self._batch.room:
            return False
        if len(follower.tokens) != len(slot.tokens) or not known.states:
            return False
        self._add(attempt, slot.sampled, known.states[0], 0)
        return True

    def _add(self, attempt: _HeadDraft, token: int, state: HiddenState, n_ahead: int) -> None:
        attempt.row = self._batch.size
        self._batch.add_states([state])
        self._batch.add_run([token], self._following[attempt.slot.id].position + n_ahead, attempt.slot.id, output=True)

    def _settle(self, slot: Slot) -> None:
        """Add the sampled token, which is certain, to the follower. Its own hidden state is not known yet."""
        self._following[slot.id].tokens.append(slot.sampled)
        self._known[slot.id].states, self._known[slot.id].text = [], []

    def _guess(self, attempt: _HeadDraft) -> bool:
        """Add the most likely token to the draft. Return False if the draft ends here."""
        token = most_likely(self._context.logits(attempt.row), self._p_min)
        if token is None:
            return False
        attempt.drafted.append(token)
        return len(attempt.drafted) < attempt.max_tokens
