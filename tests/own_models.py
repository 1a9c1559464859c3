"""Five odd transformers written by hand, as nobody's library has them, with taps for references.

A tap returns what it is given and leaves no trace in a graph; a forward hook on it is the
independent reference of an insertion at that value. `prefix` of an attention is its reference of
a prefix, written out by hand.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

WIDTH, HEADS, DIM, INNER, LAYERS, VOCABULARY = 24, 4, 10, 44, 2, 57


class Tap(nn.Module):
    """A named value h, made from x."""

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return h


class Attention(nn.Module):
    """Taps q, k, v over (batch, length, features), and the prefix of the reference."""

    kv_heads = HEADS
    tiled = False  # key/value heads are given to heads in turn, 0 1 0 1

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = Tap(), Tap(), Tap()
        self.prefix: tuple[Tensor, Tensor] | None = None  # (kv_heads, tokens, DIM) each

    def longer(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values (batch, heads, length, DIM) with the prefix in front."""
        if self.prefix is None:
            return k, v
        every = HEADS // self.kv_heads
        key, value = (
            t.repeat(every, 1, 1) if self.tiled else t.repeat_interleave(every, 0)
            for t in self.prefix
        )
        key, value = (t.expand(k.shape[0], -1, -1, -1) for t in (key, value))
        return torch.cat([key, k], 2), torch.cat([value, v], 2)

    def wider(self, bias: Tensor) -> Tensor:
        """A bias or mask with as many zeros in front."""
        return bias if self.prefix is None else F.pad(bias, (self.prefix[0].shape[1], 0))


def padding(mask: Tensor) -> Tensor:
    """(batch, 1, 1, length): -1e9 where padded."""
    return (1.0 - mask[:, None, None, :].float()) * -1e9


def split(x: Tensor, heads: int) -> Tensor:
    """(batch, length, heads * DIM)  ->  (batch, heads, length, DIM)."""
    return x.unflatten(-1, (heads, DIM)).transpose(1, 2)


class EinsumAttention(Attention):
    """Every product an einsum, tokens before rows, weights (heads, ., .), no mask but padding."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.empty(HEADS, WIDTH, DIM)) for _ in "qkv")
        self.wo = nn.Parameter(torch.empty(HEADS, DIM, WIDTH))

    def made(self, x: Tensor, weight: Tensor, tap: Tap) -> Tensor:
        h = torch.einsum("lbd,hdk->lbhk", x, weight)
        if tap._forward_hooks:  # the reference reads features in the weight's order
            h = tap(h.flatten(2), x).unflatten(-1, (HEADS, DIM))
        return h

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            self.made(x, w, tap)
            for w, tap in ((self.wq, self.q), (self.wk, self.k), (self.wv, self.v))
        )
        if self.prefix is not None:
            longer = self.longer(*(t.permute(1, 2, 0, 3) for t in (k, v)))
            k, v = (t.permute(2, 0, 1, 3) for t in longer)
        scores = torch.einsum("ibhk,jbhk->bhij", q, k) * DIM**-0.5
        p = torch.softmax(scores + self.wider(padding(mask)), -1)
        return torch.einsum("ibhk,hkd->ibd", torch.einsum("bhij,jbhk->ibhk", p, v), self.wo)


class AlibiAttention(Attention):
    """Causal, distances as biases; q, k and v of one linear, interleaved by head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * HEADS * DIM), nn.Linear(HEADS * DIM, WIDTH)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, HEADS + 1.0), persistent=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(-1, (HEADS, 3, DIM)).unbind(-2)
        if self.q._forward_hooks or self.k._forward_hooks or self.v._forward_hooks:
            taps = (self.q, self.k, self.v)
            parts = [
                t(p.flatten(2), x).unflatten(-1, (HEADS, DIM))
                for t, p in zip(taps, parts, strict=True)
            ]
        q, k, v = (p.transpose(1, 2) for p in parts)
        at = torch.arange(x.shape[1])
        distance = (at[None, :] - at[:, None])[None]  # keys behind the query are negative
        bias = self.slopes[:, None, None] * distance + torch.where(distance > 0, -1e9, 0.0)
        bias = bias[None] + padding(mask)
        k, v = self.longer(k, v)
        p = torch.softmax(q @ k.mT / math.sqrt(DIM) + self.wider(bias), -1)
        return self.o((p @ v).transpose(1, 2).flatten(2))


class MultiQueryAttention(Attention):
    """One key and one value head, expanded by hand; rotary positions by hand; the kernel."""

    kv_heads = 1

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(WIDTH, HEADS * DIM, bias=False)
        self.one, self.two = nn.Linear(WIDTH, DIM), nn.Linear(WIDTH, DIM)
        self.o = nn.Linear(HEADS * DIM, WIDTH, bias=False)

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[2])[:, None] / 10.0 ** torch.arange(DIM // 2)
        a, b = x[..., ::2], x[..., 1::2]
        pair = (a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos())
        return torch.stack(pair, -1).flatten(-2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q = self.turned(split(self.q(self.wide(x), x), HEADS))
        k = self.turned(split(self.k(self.one(x), x), 1)).expand(-1, HEADS, -1, -1)
        v = split(self.v(self.two(x), x), 1).expand(-1, HEADS, -1, -1)
        length = x.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril() & mask[:, None, None].bool()
        k, v = self.longer(k, v)
        hidden = self.wider((~seen).float()).bool()
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden)
        return self.o(h.transpose(1, 2).reshape(*x.shape[:2], -1))


class CosineAttention(Attention):
    """Normalised queries and keys, a learned temperature for each head, key heads in turn."""

    kv_heads, tiled = 2, True

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Linear(WIDTH, HEADS * DIM)
        self.wk, self.wv = (nn.Linear(WIDTH, 2 * DIM) for _ in "kv")
        self.o = nn.Linear(HEADS * DIM, WIDTH)
        self.heat = nn.Parameter(torch.full((HEADS, 1, 1), 2.0))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q = F.normalize(split(self.q(self.wq(x), x), HEADS), dim=-1)
        k = F.normalize(split(self.k(self.wk(x), x), 2), dim=-1).repeat(1, HEADS // 2, 1, 1)
        v = split(self.v(self.wv(x), x), 2).repeat(1, HEADS // 2, 1, 1)
        k, v = self.longer(k, v)
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.heat
        p = (scores + self.wider(padding(mask))).softmax(-1)
        return self.o(torch.matmul(p, v).permute(0, 2, 1, 3).reshape(*x.shape[:2], -1))


class FlatAttention(Attention):
    """Heads flattened into the batch, products by bmm, weights used as x @ W."""

    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk, self.wv = (nn.Parameter(torch.empty(WIDTH, HEADS * DIM)) for _ in "qkv")
        self.wo = nn.Parameter(torch.empty(HEADS * DIM, WIDTH))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = split(self.q(x @ self.wq, x), HEADS) * DIM**-0.5
        k, v = self.longer(
            split(self.k(x @ self.wk, x), HEADS), split(self.v(x @ self.wv, x), HEADS)
        )
        q, k, v = (t.reshape(batch * HEADS, -1, DIM) for t in (q, k, v))
        scores = torch.bmm(q, k.transpose(1, 2))
        bias = self.wider(padding(mask)).expand(batch, HEADS, length, -1).flatten(0, 1)
        h = torch.bmm(torch.softmax(scores + bias, -1), v)
        return (
            h.view(batch, HEADS, length, DIM).transpose(1, 2).reshape(batch, length, -1) @ self.wo
        )


class FeedForward(nn.Module):
    """down(act(up(x))), or with a gate from the other half of one fused linear."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated, self.act = gated, Tap()
        self.up, self.down = nn.Linear(WIDTH, INNER * (1 + gated)), nn.Linear(INNER, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.gated:
            gate, h = h.chunk(2, -1)
            h = F.silu(gate) * h
        else:
            h = F.gelu(h)
        return self.down(self.act(h, x))


class Block(nn.Module):
    """A layer: before or after a norm, side by side, or with a scaled skip."""

    def __init__(self, attention: type[Attention], wiring: str) -> None:
        super().__init__()
        self.wiring, self.attention = wiring, attention()
        self.feed_forward = FeedForward(gated=attention is MultiQueryAttention)
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn_out, self.ffn_out = Tap(), Tap()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.wiring == "scaled":  # DeepNorm
            x = self.first(1.7 * x + self.attn_out(self.attention(x, mask), x))
            return self.second(1.7 * x + self.ffn_out(self.feed_forward(x), x))
        if self.wiring == "beside":
            y = self.first(x)
            a = self.attn_out(self.attention(y, mask), y)
            return x + a + self.ffn_out(self.feed_forward(y), y)
        y = self.first(x)
        x = x + self.attn_out(self.attention(y, mask), y)
        y = self.second(x)
        return x + self.ffn_out(self.feed_forward(y), y)


KINDS: dict[str, tuple[type[Attention], str]] = {
    "einsum, tokens first": (EinsumAttention, "before"),
    "alibi, interleaved": (AlibiAttention, "before"),
    "multi-query": (MultiQueryAttention, "before"),
    "cosine, scaled residual": (CosineAttention, "scaled"),
    "flat heads, parallel": (FlatAttention, "beside"),
}


class OwnConfig(PretrainedConfig):
    """The kind of model, a key of KINDS."""

    model_type = "own"

    def __init__(self, kind: str = "cosine, scaled residual", **options: Any) -> None:
        self.kind, self.vocab_size = kind, VOCABULARY
        super().__init__(**options)


class OwnModel(PreTrainedModel):
    """Embedding, blocks and a head over the vocabulary."""

    config_class = OwnConfig
    base_model_prefix = "model"

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(*KINDS[config.kind]) for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)
        generator = torch.Generator().manual_seed(5)
        for p in self.parameters():
            p.data.normal_(0.0, 0.25, generator=generator)

    def get_input_embeddings(self) -> nn.Module:
        return self.words

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> CausalLMOutput:
        first = self.config.kind.endswith("tokens first")
        if inputs_embeds is None:
            x = self.words(input_ids.transpose(0, 1) if first else input_ids)
        else:
            x = inputs_embeds.transpose(0, 1) if first else inputs_embeds
        mask = attention_mask
        if mask is None:
            mask = torch.ones(x.shape[:2][:: -1 if first else 1])
        x = self.stream(x, mask)
        return CausalLMOutput(logits=self.head(x.transpose(0, 1) if first else x))

    def stream(self, x: Tensor, mask: Tensor) -> Tensor:
        """What the blocks make of embedded tokens."""
        for block in self.blocks:
            x = block(x, mask)
        return x
