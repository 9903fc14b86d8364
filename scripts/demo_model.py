"""Defines the demo models in PyTorch with llama.cpp's layout, so that their weights are exported without a change.

`Decoder` is llama's architecture (RMSNorm, interleaved RoPE, SwiGLU, tied embeddings); `Encoder` is BERT's with mean
pooling. Used by `train_demo.py` only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from tiny_gguf import Tensors, TinyShape
from torch import Tensor, nn

INIT_STD = 0.02


def _linear(n_in: int, n_out: int, *, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(n_in, n_out, bias=bias)
    nn.init.normal_(layer.weight, std=INIT_STD)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class DecoderBlock(nn.Module):
    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        self.shape = shape
        n_kv = shape.n_head_kv * shape.n_head_dim
        self.attn_norm = nn.RMSNorm(shape.n_embd, eps=1e-5)
        self.attn_q = _linear(shape.n_embd, shape.n_embd)
        self.attn_k = _linear(shape.n_embd, n_kv)
        self.attn_v = _linear(shape.n_embd, n_kv)
        self.attn_output = _linear(shape.n_embd, shape.n_embd)
        self.ffn_norm = nn.RMSNorm(shape.n_embd, eps=1e-5)
        self.ffn_gate = _linear(shape.n_embd, shape.n_ff)
        self.ffn_up = _linear(shape.n_embd, shape.n_ff)
        self.ffn_down = _linear(shape.n_ff, shape.n_embd)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        h = self.attn_norm(x)
        q, k, v = (self._heads(layer(h)) for layer in (self.attn_q, self.attn_k, self.attn_v))
        groups = self.shape.n_head // self.shape.n_head_kv
        k, v = (t.repeat_interleave(groups, dim=1) for t in (_rotate(k, cos, sin), v))
        mixed = F.scaled_dot_product_attention(_rotate(q, cos, sin), k, v, attn_mask=mask)
        x = x + self.attn_output(mixed.transpose(1, 2).flatten(2))
        h = self.ffn_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.shape.n_head_dim)).transpose(1, 2)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to neighbouring pairs, as llama.cpp does for this architecture."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class Decoder(nn.Module):
    def __init__(self, shape: TinyShape, n_vocab: int, begin: int) -> None:
        """`begin` is the token that every document begins with."""
        super().__init__()
        self.shape = shape
        self.begin = begin
        self.token_embd = nn.Embedding(n_vocab, shape.n_embd)
        nn.init.normal_(self.token_embd.weight, std=INIT_STD)
        self.blk = nn.ModuleList(DecoderBlock(shape) for _ in range(shape.n_layer))
        self.output_norm = nn.RMSNorm(shape.n_embd, eps=1e-5)
        with torch.no_grad():  # residual branches start small
            for block in self.blk:
                for layer in (block.attn_output, block.ffn_down):
                    layer.weight /= (2 * shape.n_layer) ** 0.5

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the last hidden states (rows, tokens, n_embd). A document does not attend to those before it."""
        half = self.shape.n_head_dim // 2
        frequency = 10000.0 ** (-torch.arange(half) / half)
        angle = torch.arange(tokens.shape[1])[:, None] * frequency
        cos, sin = angle.cos(), angle.sin()
        document = (tokens == self.begin).cumsum(1)
        mask = (document[:, :, None] == document[:, None, :]).tril()[:, None]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, cos, sin, mask)
        hidden: Tensor = self.output_norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.token_embd.weight)

    @torch.no_grad()
    def continue_greedily(self, tokens: list[int], end: int, limit: int = 160) -> list[int]:
        start = len(tokens)
        while len(tokens) < start + limit:
            best = int(self.logits(self(torch.tensor([tokens]))[0, -1]).argmax())
            if best == end:
                break
            tokens = [*tokens, best]
        return tokens[start:]


class EncoderBlock(nn.Module):
    def __init__(self, shape: TinyShape) -> None:
        super().__init__()
        n, self.n_head = shape.n_embd, shape.n_head
        self.attn_q, self.attn_k, self.attn_v = (_linear(n, n, bias=True) for _ in range(3))
        self.attn_output = _linear(n, n, bias=True)
        self.attn_output_norm = nn.LayerNorm(n, eps=1e-12)
        self.ffn_up = _linear(n, shape.n_ff, bias=True)
        self.ffn_down = _linear(shape.n_ff, n, bias=True)
        self.layer_output_norm = nn.LayerNorm(n, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = self.attn_output_norm(x + self.attn_output(mixed.transpose(1, 2).flatten(2)))
        h = self.ffn_down(F.gelu(self.ffn_up(x), approximate="tanh"))
        normed: Tensor = self.layer_output_norm(x + h)
        return normed


class Encoder(nn.Module):
    def __init__(self, shape: TinyShape, n_vocab: int) -> None:
        super().__init__()
        self.shape = shape
        self.token_embd = nn.Embedding(n_vocab, shape.n_embd)
        self.token_types = nn.Embedding(2, shape.n_embd)
        self.position_embd = nn.Embedding(shape.n_ctx, shape.n_embd)
        for table in (self.token_embd, self.token_types, self.position_embd):
            nn.init.normal_(table.weight, std=INIT_STD)
        self.token_embd_norm = nn.LayerNorm(shape.n_embd, eps=1e-12)
        self.blk = nn.ModuleList(EncoderBlock(shape) for _ in range(shape.n_layer))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return unit vectors (texts, n_embd); token 0 is padding."""
        mask = tokens != 0
        position = torch.arange(tokens.shape[1])
        x = self.token_embd(tokens) + self.position_embd(position) + self.token_types.weight[0]
        x = self.token_embd_norm(x)
        for block in self.blk:
            x = block(x, mask)
        weights = mask.float()[..., None]
        return F.normalize((x.float() * weights).sum(1) / weights.sum(1), dim=-1)


def exported(model: nn.Module) -> Tensors:
    """Return the weights by llama.cpp's names, which the modules already have."""
    return {name: value.detach().float().numpy() for name, value in model.state_dict().items()}
