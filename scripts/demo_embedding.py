"""Trains the embedding model for `train_demo.py`: texts with the same meaning get similar vectors.

A small BERT is trained with pairs (two wordings of a question, a question and its answer, two words of one kind):
within a batch each text must be nearest to its partner. The vocabulary contains frequent words of the corpus, and
pieces down to single characters for the rest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from demo_corpus import conversations, facts
from demo_model import Encoder, exported
from tiny_gguf import TinyShape, write_bert
from torch import Tensor, nn

Train = Callable[[nn.Module, Callable[[int], Tensor], int, float, Path], None]
Pair = tuple[str, str, str]  # topic, two texts

SHAPE = TinyShape(n_layer=2, n_embd=96, n_head=4, n_head_kv=4, n_ff=256, n_ctx=256)
N_WORDS, STEPS, PAIRS, RATE, TEMPERATURE = 1500, 500, 192, 5e-3, 0.06
PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[]^_`{|}~\\"
_SPLIT = re.compile(r"[^\W_]+|[^\w\s]|_")


def pair(random: Random) -> Pair:
    if random.random() < 0.2:
        kind = random.choice(list(facts.LISTS))
        first, second = random.sample((kind, *facts.LISTS[kind]), 2)
        return f"kind {kind}", first, second
    return conversations.paraphrases(random)


def wordpieces() -> list[str]:
    """Return the vocabulary in the form of llama.cpp's `bert` tokenizer: ▁ before pieces that begin a word."""
    random = Random("words")
    words: Counter[str] = Counter()
    for _ in range(12_000):
        _, *texts = pair(random)
        for text in texts:
            words.update(_SPLIT.findall(text.lower()))
    endings = ("s", "es", "ed", "ing", "er", "ly", "y", "al", "ion", "en", "on", "an", "in", "th", "ch", "sh", "st")
    characters = "abcdefghijklmnopqrstuvwxyz0123456789" + PUNCTUATION
    pieces = dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    pieces |= dict.fromkeys([form for c in characters for form in (f"▁{c}", c)] + list(endings))
    pieces |= dict.fromkeys(f"▁{word}" for word, _ in words.most_common(N_WORDS))
    return list(pieces)


class WordPieces:
    """A tokenizer with longest match first, as in llama.cpp."""

    def __init__(self, pieces: list[str]) -> None:
        self.id = {piece: number for number, piece in enumerate(pieces)}
        self.longest = max(map(len, pieces))

    def encode(self, text: str) -> list[int]:
        ids = [self.id["[CLS]"]]
        for word in _SPLIT.findall(text.lower()):
            ids += self._word("▁" + word)
        return [*ids, self.id["[SEP]"]]

    def _word(self, word: str) -> list[int]:
        ids, at = [], 0
        while at < len(word):
            sizes = range(min(self.longest, len(word) - at), 0, -1)
            size = next((n for n in sizes if word[at : at + n] in self.id), 0)
            if not size:
                return [self.id["[UNK]"]]
            ids.append(self.id[word[at : at + size]])
            at += size
        return ids

    def batch(self, texts: list[str]) -> Tensor:
        rows = [self.encode(text)[: SHAPE.n_ctx] for text in texts]
        width = max(map(len, rows))
        return torch.tensor([row + [0] * (width - len(row)) for row in rows])


def loss_of(model: Encoder, words: WordPieces, pairs: list[Pair]) -> Tensor:
    """Return the contrastive loss of a batch; other texts of the same topic do not count as wrong."""
    topics = [topic for topic, _, _ in pairs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        left = model(words.batch([a for _, a, _ in pairs]))
        right = model(words.batch([b for _, _, b in pairs]))
    scores = left.float() @ right.float().T / TEMPERATURE
    same = torch.tensor([[a == b for b in topics] for a in topics]) & ~torch.eye(len(pairs), dtype=torch.bool)
    scores = scores.masked_fill(same, -1e4)
    target = torch.arange(len(pairs))
    return (F.cross_entropy(scores, target) + F.cross_entropy(scores.T, target)) / 2


def train_embedding(out: Path, work: Path, train: Train) -> None:
    torch.manual_seed(2)
    pieces = wordpieces()
    words, model = WordPieces(pieces), Encoder(SHAPE, len(pieces))
    n_params = sum(p.numel() for p in model.parameters())
    print(f"Compass: {n_params:,} parameters, {len(pieces)} tokens", flush=True)

    def loss_at(step: int) -> Tensor:
        random = Random(f"embed {step}")
        return loss_of(model, words, [pair(random) for _ in range(PAIRS)])

    train(model, loss_at, STEPS, RATE, work / "embed.pt")
    about = {
        "description": "A tiny embedding model for demonstration",
        "license": "mit",
        "size_label": f"{n_params / 1e6:.1f}M",
    }
    path = out / "demo-embed.gguf"
    write_bert(path, "Compass", SHAPE, pieces, exported(model), about=about, quantize=True)
    print(f"  {path}: {path.stat().st_size:,} bytes")
    evaluate(model.eval(), words)


@torch.no_grad()
def evaluate(model: Encoder, words: WordPieces) -> None:
    base = "What sound does a cow make?"
    others = (
        "What noise does the cow make?",
        "What does a cow eat?",
        "The capital of France is Paris.",
        "Count to ten.",
    )
    vectors = model(words.batch([base, *others]))
    for text, score in zip(others, (vectors[1:] @ vectors[0]).tolist(), strict=True):
        print(f"  {score:.3f}  {base}  /  {text}")
