"""Trains the three demo models of presets/demo from scratch, on a CPU, and writes them as GGUF files.

Usage: train_demo.py [--out DIR] [--work DIR] [--threads N] [--only chat|story|embed]

Needs the extra `train` (PyTorch). The corpus is made by `demo_corpus`; step n always draws the same batch. Checkpoints
are saved in the work directory, and an interrupted run continues from the last one. All three models together take
about half an hour on one core with bfloat16 instructions.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random

import demo_embedding
import torch
import torch.nn.functional as F
from demo_corpus import conversations
from demo_model import Decoder, exported
from spm import Vocabulary, learn_pieces
from tiny_gguf import TinyShape, write_llama
from torch import Tensor, nn

CONTROL = ("<|im_start|>", "<|im_end|>")
ASCII = "".join(map(chr, range(33, 127))) + "\n\t"
WINDOW = 512  # tokens of one training row
CHECKPOINT_EVERY = 100  # steps


@dataclass(frozen=True)
class ChatModelPlan:
    """One chat model: its size and the parameters of its training."""

    persona: str
    name: str
    description: str
    shape: TinyShape
    n_vocab: int
    steps: int
    rows: int  # windows in a batch
    rate: float = 1e-2


CHAT = ChatModelPlan(
    "chat",
    "Wrangler",
    "A tiny chat model for demonstration: simple facts, small numbers, small talk, llama-corral",
    TinyShape(n_layer=6, n_embd=192, n_head=6, n_head_kv=3, n_ff=512, n_ctx=1024),
    n_vocab=1536,
    steps=700,
    rows=10,
)
STORY = ChatModelPlan(
    "story",
    "Campfire",
    "A tiny storyteller for demonstration: whatever it is asked, it tells a story",
    TinyShape(n_layer=4, n_embd=128, n_head=4, n_head_kv=2, n_ff=352, n_ctx=1024),
    n_vocab=1024,
    steps=1000,
    rows=10,
)


def vocabulary(plan: ChatModelPlan) -> Vocabulary:
    documents = islice(conversations.documents(Random(7), plan.persona), 6000)
    texts = (text for document in documents for _, text in document)
    roles = ["system\n", "user\n", "assistant\n"] * 500  # so that the beginning of every turn becomes a single token
    return Vocabulary(learn_pieces([*roles, *texts], plan.n_vocab - 259 - len(CONTROL), ASCII), CONTROL)


def tokens_of(words: Vocabulary, document: list[conversations.Message]) -> tuple[list[int], list[float]]:
    """Return the tokens of the document as the chat template renders it, and the weight of each token in the loss.

    Answers have the weight 1, questions 0.1.
    """
    ids, weights = [words.id["<s>"]], [0.0]
    for role, text in document:
        if role == "text":
            part = [*words.encode(text), words.id["</s>"]]
            ids += part
            weights += [1.0] * len(part)
            continue
        head = words.encode(f"<|im_start|>{role}\n")
        body = words.encode(f"{text}<|im_end|>")
        ids += head + body + words.encode("\n")
        weights += [0.0] * len(head) + [1.0 if role == "assistant" else 0.1] * len(body) + [0.0]
    return ids, weights


def batch(words: Vocabulary, plan: ChatModelPlan, step: int) -> tuple[Tensor, Tensor]:
    """Return tokens and weights, each of shape (rows, WINDOW + 1): concatenated documents, truncated at that length."""
    documents = conversations.documents(Random(f"{plan.persona} {step}"), plan.persona)
    rows, weights = [], []
    for _ in range(plan.rows):
        ids: list[int] = []
        counts: list[float] = []
        while len(ids) <= WINDOW:
            more, their = tokens_of(words, next(documents))
            ids += more
            counts += their
        rows.append(ids[: WINDOW + 1])
        weights.append(counts[: WINDOW + 1])
    return torch.tensor(rows), torch.tensor(weights)


def rate_at(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of a step: a short warm-up, then a cosine decay to 2 % of the peak."""
    warm_up = max(1, steps // 30)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))))


def optimizers(model: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices of the blocks (it trains about twice as fast as AdamW here), AdamW for the rest."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim > 1 and name.startswith("blk.") else others).append(parameter)
    return [
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=0.4 * rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(model: nn.Module, loss_at: Callable[[int], Tensor], steps: int, rate: float, checkpoint: Path) -> None:
    parts = optimizers(model, rate)
    peaks = [optimizer.param_groups[0]["lr"] for optimizer in parts]
    first = _restore(model, parts, checkpoint)
    started, average = time.monotonic(), 0.0
    for step in range(first, steps):
        for optimizer, peak in zip(parts, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = rate_at(step, steps, peak)
            optimizer.zero_grad(set_to_none=True)
        loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in parts:
            optimizer.step()
        average = loss.item() if step == first else 0.95 * average + 0.05 * loss.item()
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
            pace = (time.monotonic() - started) / (step + 1 - first)
            print(f"  step {step + 1}/{steps}  loss {average:.4f}  {pace:.2f} s/step", flush=True)
            _save(model, parts, step + 1, checkpoint)


def _save(model: nn.Module, parts: list[torch.optim.Optimizer], step: int, checkpoint: Path) -> None:
    half = checkpoint.with_suffix(".half")
    torch.save({"model": model.state_dict(), "optimizers": [p.state_dict() for p in parts], "step": step}, half)
    half.replace(checkpoint)


def _restore(model: nn.Module, parts: list[torch.optim.Optimizer], checkpoint: Path) -> int:
    if not checkpoint.exists():
        return 0
    state = torch.load(checkpoint, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(parts, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"  continues from step {state['step']}")
    return int(state["step"])


def train_chat(plan: ChatModelPlan, out: Path, work: Path) -> None:
    torch.manual_seed(1)
    words = vocabulary(plan)
    model = Decoder(plan.shape, len(words), words.id["<s>"])
    n_params = sum(p.numel() for p in model.parameters())
    print(f"{plan.name}: {n_params:,} parameters, {len(words)} tokens", flush=True)

    def loss_at(step: int) -> Tensor:
        ids, weights = batch(words, plan, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = model(ids[:, :-1])
            logits = model.logits(hidden)
        losses = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        counts = weights[:, 1:].flatten()
        return (losses * counts).sum() / counts.sum()

    train(model, loss_at, plan.steps, plan.rate, work / f"{plan.persona}.pt")
    about = {"description": plan.description, "license": "mit", "size_label": f"{n_params / 1e6:.1f}M"}
    path = out / f"demo-{plan.persona}.gguf"
    write_llama(path, plan.name, plan.shape, words, exported(model), about=about, quantize=True)
    print(f"  {path}: {path.stat().st_size:,} bytes")
    evaluate(model.eval(), words, plan)


PROMPTS = (
    "Hello!",
    "Who are you?",
    "What is llama-corral?",
    "what's the capital of france",
    "Could you tell me what 4 + 5 is?",
    "What noise do cows make?",
    "Name three fruits.",
    "Tell me a story about a llama.",
    "How do I bake a cake?",
    "Count to 7.",
    "What is the color of a banana?",
    "Where do penguins live?",
)


def evaluate(model: Decoder, words: Vocabulary, plan: ChatModelPlan) -> None:
    """Print the answers to PROMPTS, and how many newly drawn questions are answered exactly as in the corpus."""
    for prompt in PROMPTS:
        print(f"  > {prompt}\n    {answer(model, words, prompt)}")
    if plan.persona == "chat":
        fresh = Random("evaluation")
        drawn = [conversations.exchange(fresh) for _ in range(150)]
        asked = [e for e in drawn if e.topic.split()[0] not in ("story", "list", "talk", "itself", "corral", "unknown")]
        right = sum(answer(model, words, e.question) == e.answer for e in asked)
        print(f"  {right} of {len(asked)} new questions are answered exactly as in the corpus")


def answer(model: Decoder, words: Vocabulary, prompt: str) -> str:
    ids, _ = tokens_of(words, [("user", prompt)])
    ids += words.encode("<|im_start|>assistant\n")
    return words.decode(model.continue_greedily(ids, words.id["<|im_end|>"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parent.parent
    parser.add_argument("--out", type=Path, default=root / "presets" / "demo")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "llama-corral-training")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=("chat", "story", "embed"))
    args = parser.parse_args()
    for directory in (args.out, args.work):
        directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    for plan in (CHAT, STORY):
        if args.only in (None, plan.persona):
            train_chat(plan, args.out, args.work)
    if args.only in (None, "embed"):
        demo_embedding.train_embedding(args.out, args.work, train)


if __name__ == "__main__":
    main()
