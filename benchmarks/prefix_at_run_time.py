"""Prefixes given to an unmodified eager model while it runs, by watching its tensor functions.

softmax(f(q k^T)) v  ->  softmax([f(q P_k^T); f(q k^T)]) [P_v; v]

Needs neither a cache nor an attention registry, and nothing of peftc's graphs: a product of two
activations remembers its left factor q, and each later step on it is noted, until a softmax reads
it. There the steps that scale are repeated on q P_k^T, and those that mask or add a bias are not.
A step with another name forgets the product, so that an unknown attention is found by too few
softmaxes, never silently left without its prefix. Where a model has a cache or takes a function of
transformers' registry as well, the sweep compares all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import references
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

Step = Callable[[Tensor], Tensor]
# Every query sees the prefix, with no bias: what masks, adds, or only changes the layout.
MASKING = frozenset(
    "add radd iadd add_ masked_fill masked_fill_ where cat concat maximum max contiguous clone "  # noqa: SIM905
    "view reshape unsqueeze squeeze flatten unflatten expand permute transpose getitem index_put "
    "index_put_ nan_to_num view_as narrow split chunk".split()
)
SCALING = frozenset(
    "mul rmul imul mul_ div truediv div_ itruediv true_divide sub isub sub_ tanh clamp".split()  # noqa: SIM905
)
CASTS = frozenset(("to", "type", "type_as", "float", "half", "bfloat16", "double"))
DROPOUTS = frozenset(("dropout", "alpha_dropout"))
# Of a product, by keyword, in order.
FACTORS = ("batch1", "input", "mat1", "batch2", "mat2", "other", "tensor2")


@dataclass
class Scores:
    """q k^T with the steps after it: the same for a prefix's scores."""

    q: Tensor
    steps: list[Step] = field(default_factory=list)


class PrefixedSoftmax(TorchFunctionMode):
    """Gives the n-th attention that runs the n-th of `prefixes`.

    A prefix is a key and a value (kv_heads, tokens, dim), or None twice, the heads of its attention
    (products of other heads are no attention among tokens), and whether key/value heads are
    repeated in turn.
    """

    def __init__(self, prefixes: Sequence[tuple[Tensor | None, Tensor | None, int, bool]]) -> None:
        super().__init__()
        self.prefixes = list(prefixes)
        self.seen = 0
        self.summed = False
        self.scores: dict[int, Scores] = {}
        self.shares: dict[int, tuple[Tensor, Tensor]] = {}  # probabilities: the prefix's own, P_v
        self.kept: list[Any] = []  # no id is used twice while the model runs

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_") if callable(func) else ""
        if getattr(func, "__name__", "").endswith("_") and not name.endswith("_"):
            name += "_" if not getattr(func, "__name__", "").endswith("__") else ""
        if name == "scaled_dot_product_attention" and self.is_next(args[0]):
            return self.kernel(func, *args, **kwargs)
        if name in ("matmul", "bmm", "rmatmul", "baddbmm", "einsum"):
            return self.product(name, func, args, kwargs)
        noted = self.scores.get(id(first(args, kwargs)))
        if name == "softmax" and noted is not None and self.is_next(noted.q):
            return self.softmax(func, args, kwargs)
        if noted is not None and name == "logsumexp":
            self.summed = True  # beside the softmax: what a prefix adds to the sum is not followed
        out = func(*args, **kwargs)
        self.follow(name, func, args, kwargs, out)
        return out

    def is_next(self, q: Tensor) -> bool:
        """Whether queries have the heads of the attention that is to come; any where none is."""
        if self.seen >= len(self.prefixes):
            return True  # one too many, which the count tells
        return q.dim() == 3 or q.shape[-3] == self.prefixes[self.seen][2]

    def next_prefix(self, batch: int) -> tuple[Tensor, Tensor] | None:
        """(batch, heads, tokens, dim) key and value of the attention that runs now."""
        own = (*self.prefixes, (None, None, 0, False))
        key, value, heads, tiled = own[min(self.seen, len(self.prefixes))]
        self.seen += 1
        if key is None or value is None:
            return None
        repeats = heads // key.shape[0]
        if tiled:
            key, value = key.repeat(repeats, 1, 1), value.repeat(repeats, 1, 1)
        else:
            key, value = key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0)
        return key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)

    def kernel(self, func: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **kwargs: Any) -> Any:
        """scaled_dot_product_attention with longer keys, values and mask."""
        names = ("attn_mask", "dropout_p", "is_causal")
        kwargs.update(zip(names, rest, strict=False))
        own = self.next_prefix(q.shape[0])
        if own is not None:
            key, value = own
            every = key.shape[1] // k.shape[1]  # the kernel may repeat the heads itself
            key, value = key[:, ::every], value[:, ::every]
            mask = kwargs.get("attn_mask")
            if mask is None and kwargs.pop("is_causal", False):
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
            if mask is not None:
                mask = mask.expand(*mask.shape[:-1], k.shape[2])
                keep = True if mask.dtype == torch.bool else 0.0
                kwargs["attn_mask"] = functional.pad(mask, (key.shape[2], 0), value=keep)
            k, v = torch.cat([key.to(k.dtype), k], 2), torch.cat([value.to(v.dtype), v], 2)
        return func(q, k, v, **kwargs)

    def product(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """A product: of queries and keys, of probabilities and values, or any other."""
        out = func(*args, **kwargs)
        given = [*args, *(kwargs[k] for k in FACTORS if k in kwargs)]
        factors = [a for a in given if isinstance(a, Tensor)][-2:]
        if len(factors) < 2:
            return out  # an einsum that turns one tensor
        left, right = factors
        if isinstance(left, nn.Parameter) or isinstance(right, nn.Parameter):
            return out
        if id(left) in self.shares:
            mine, value = self.shares[id(left)]
            own = mine.to(value.dtype) @ value
            if name == "einsum" and args[0].endswith("->ibnd"):  # tokens first
                return out + own.permute(2, 0, 1, 3)
            return out + own.reshape(out.shape)
        scale = kwargs.get("alpha", 1)
        first_tokens = name == "einsum" and args[0].startswith("ibnd,jbnd")
        q = left.permute(1, 2, 0, 3) if first_tokens else left
        self.note(out, Scores(q, [lambda t: t * scale]))
        return out

    def softmax(self, func: Any, args: Any, kwargs: Any) -> Tensor:
        """The probabilities of the model's own keys, the prefix's share noted beside them."""
        x = first(args, kwargs)
        scores = self.scores[id(x)]
        q = scores.q
        if q.dim() == 3 and self.seen < len(self.prefixes):
            q = q.unflatten(0, (-1, self.prefixes[self.seen][2]))
        own = self.next_prefix(q.shape[0])
        if own is None:
            return func(*args, **kwargs)
        key, value = own
        while key.dim() < q.dim():  # streams beside one another, with the same heads
            key, value = key.unsqueeze(1), value.unsqueeze(1)
        beside = q @ key.to(q.dtype).transpose(-1, -2)
        for step in scores.steps:
            beside = step(beside)
        mine = beside.reshape(*x.shape[:-1], -1).to(x.dtype)
        whole = func(
            torch.cat([mine, x], -1), *args[1:], **{k: v for k, v in kwargs.items() if k != "input"}
        )
        mine, rest = whole[..., : key.shape[-2]], whole[..., key.shape[-2] :]
        rest = rest.clone()
        self.kept.append(rest)
        self.shares[id(rest)] = (mine.reshape(beside.shape), value)
        return rest

    def follow(self, name: str, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Note what a step on scores or probabilities means for the prefix's."""
        given = [*args, *kwargs.values()]
        given += [t for a in given if isinstance(a, (list, tuple)) for t in a]
        tensors = [a for a in given if isinstance(a, Tensor)]
        source = next((t for t in tensors if id(t) in self.scores), None)
        outs = [
            t for t in (out if isinstance(out, (list, tuple)) else [out]) if isinstance(t, Tensor)
        ]
        if source is not None:
            old = self.scores[id(source)]
            if name in SCALING:
                others = [a for a in given if a is not source]
                by_key = [
                    t for t in others if isinstance(t, Tensor) and t.dim() and t.shape[-1] > 1
                ]
                steps = [] if by_key else [scaled_by(func, source, args, kwargs)]
            elif name in CASTS:
                dtype = outs[0].dtype
                steps = [lambda t: t.to(dtype)]
            elif name in MASKING | DROPOUTS:
                steps = []
            else:
                return
            for t in outs[:1] if name in ("split", "chunk") else outs:
                self.note(t, Scores(old.q, [*old.steps, *steps]))
        source = next((t for t in tensors if id(t) in self.shares), None)
        if source is not None and name in MASKING | CASTS | SCALING | DROPOUTS:
            mine, value = self.shares[id(source)]
            for t in outs[:1]:
                self.kept.append(t)
                self.shares[id(t)] = (mine.to(t.dtype), value)

    def note(self, tensor: Tensor, scores: Scores) -> None:
        """Remember what a tensor is."""
        self.kept.append(tensor)
        self.scores[id(tensor)] = scores


def first(args: Any, kwargs: Any) -> Any:
    """What a function works on."""
    return args[0] if args else kwargs.get("input")


def scaled_by(func: Any, source: Tensor, args: Any, kwargs: Any) -> Step:
    """The step with the prefix's scores in the place of the scores."""

    def step(t: Tensor) -> Tensor:
        return func(*(t.clone() if a is source else a for a in args), **kwargs)

    return step


def prefixed_at_run_time(
    model: Any, graph: Any, attentions: Sequence[Any], given: dict[str, Tensor]
) -> Tensor | None:
    """The model's logits with the graph's prefixes; None where it does not hold."""
    own = iter((p.key.detach(), p.value.detach()) for _, p in references.sites(graph))
    prefixes = [
        (*(next(own) if a.role == "attn.kv" else (None, None)), a.heads, a.tiled)
        for a in attentions
    ]
    watch = PrefixedSoftmax(prefixes)
    with watch:
        found = references.logits(model(**given, use_cache=False))
    return found if watch.seen == len(prefixes) and not watch.summed else None
