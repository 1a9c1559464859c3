"""Streams that are run again, branches of several steps, and values made of several projections."""

from __future__ import annotations

import own_models
import torch
from torch import Tensor, nn

from peftc.capture import capture
from peftc.dataflow import find_sites

WIDTH, HEADS, DIM = own_models.WIDTH, own_models.HEADS, own_models.DIM


class Mixed(own_models.Attention):
    """Queries and keys mixed behind their projections, values half from the token before."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(WIDTH, HEADS * DIM), nn.Linear(WIDTH, HEADS * DIM)
        half = HEADS * DIM // 2
        self.now, self.before = nn.Linear(WIDTH, half, False), nn.Linear(WIDTH, half, False)
        self.o = nn.Linear(HEADS * DIM, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k = self.to_q(x), self.to_k(x)
        mean = 0.5 * (q + k)
        first = self.before(x.new_zeros(x.shape[0], 1, WIDTH))
        v = torch.cat([self.now(x), torch.cat([first, self.before(x)[:, :-1]], 1)], -1)
        q, k, v = (own_models.split(t, HEADS) for t in (q + mean, k + mean, v))
        scores = q @ k.transpose(2, 3) + own_models.padding(mask)
        return self.o((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class Convolved(Mixed):
    """A convolution over tokens behind the output projection, added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH, padding=2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = super().forward(x, mask)
        return h + self.conv(h.transpose(1, 2))[..., : h.shape[1]].transpose(1, 2)


class Blocked(own_models.Attention):
    """Attention inside blocks of four tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o = nn.Linear(WIDTH, 3 * HEADS * DIM), nn.Linear(HEADS * DIM, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        length = x.shape[1]
        blocks = (length + 3) // 4
        x = nn.functional.pad(x, (0, 0, 0, 4 * blocks - length))
        parts = self.qkv(x).chunk(3, -1)
        q, k, v = (own_models.split(t, HEADS).reshape(-1, HEADS, blocks, 4, DIM) for t in parts)
        made = torch.softmax(q @ k.transpose(-1, -2), -1) @ v
        return self.o(made.flatten(2, 3).transpose(1, 2).flatten(2))[:, :length]


class Normed(nn.Embedding):
    """An embedding with a norm inside."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.norm = nn.RMSNorm(width)

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input) * 2.0)


class Wired(own_models.OwnModel):
    """Two blocks over a normed embedding, in turn and again where `rounds` says so."""

    def __init__(self, attention: type[own_models.Attention], rounds: int = 1) -> None:
        super().__init__(own_models.OwnConfig())
        self.words, self.rounds = Normed(own_models.VOCABULARY, WIDTH), rounds
        self.blocks = nn.ModuleList(own_models.Block(attention, "before") for _ in range(2))
        self.low, self.norm = nn.Parameter(torch.zeros(WIDTH)), nn.LayerNorm(WIDTH)

    def stream(self, x: Tensor, mask: Tensor) -> Tensor:
        low = self.low.expand_as(x)
        for _ in range(self.rounds):
            low = self.norm(self.blocks[0](low + x, mask))
            x = self.norm(self.blocks[1](x + low, mask))
        return x


def sites_of(attention: type[own_models.Attention], rounds: int = 1):
    """The sites of a model with random weights."""
    torch.manual_seed(0)
    return find_sites(capture(Wired(attention, rounds).eval()))


def test_a_stack_that_is_run_again_on_its_own_sum_is_no_feed_forward():
    sites = sites_of(Mixed, rounds=3)
    for role in ("attn.out", "ffn.down", "ffn.out"):
        found = [s.module.split(".")[:2] for s in sites.sites if s.role == role]
        assert found == [["blocks", "0"], ["blocks", "1"]] * 3, role
    assert sites.layers == {"": 6}


def test_projections_whose_values_are_mixed_or_joined():
    found = {}
    for site in sites_of(Mixed).sites:
        if site.layer == 1:
            found.setdefault(site.role, []).append((site.module.rpartition(".")[2], site.width))
    full, half = HEADS * DIM, HEADS * DIM // 2
    assert found["attn.q"] == [("to_q", full)]
    assert found["attn.k"] == [("to_k", full)]
    assert found["attn.v"] == [("now", half), ("before", half)]


def test_a_convolution_behind_attention_is_a_step_of_its_branch():
    sites = sites_of(Convolved)
    assert "mixer.out" not in sites.roles
    [out] = [s for s in sites.sites if s.role == "attn.out" and s.layer == 0]
    assert str(out.h.target) == "aten.add.Tensor"
    assert [str(u.target) for u in out.readers] == ["aten.add.Tensor"]


def test_an_embedding_s_output_is_behind_what_its_module_makes_of_it():
    sites = sites_of(Mixed)
    [site] = [s for s in sites.sites if s.role == "embed.out"]
    assert site.module == "words"
    inside = [u for u in site.h.users if u.meta["module"].startswith("words")]
    assert not inside
    assert site.lookup is not None


def test_attention_inside_blocks_of_tokens_has_no_heads_to_name():
    sites = sites_of(Blocked)
    assert not sites.attentions
    assert [s.role for s in sites.sites if s.layer == 0 and s.role.endswith(".out")] == [
        "mixer.out",
        "ffn.out",
        "block.out",
    ]


def test_products_of_repeated_rows_add_as_einsum_does():
    class Repeated(Mixed):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            place = x[:1].transpose(0, 1).expand(-1, x.shape[0], -1)
            w = self.to_q.weight.view(HEADS, DIM, WIDTH).permute(2, 0, 1)
            places = torch.einsum("ibh,hnd->ibnd", place, w).transpose(0, 1)
            return super().forward(x, mask) + self.o(places.flatten(2))

    torch.manual_seed(0)
    model = Wired(Repeated).eval().requires_grad_(False)
    program = capture(model)
    ids = torch.randint(3, own_models.VOCABULARY, (2, 17))
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        assert torch.equal(program(**given).logits, model(**given).logits)
