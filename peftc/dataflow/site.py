"""What the analysis finds: sites, attention cores, and where positions enter. Facts, no edits."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from peftc.capture.program import Program


def joined(stack: str, layer: int | None, role: str, order: int) -> str:
    """The parts of a name: `decoder_layer3_attn_q_2` for the second of its kind."""
    parts = [stack, "" if layer is None else f"layer{layer}", role, str(order + 1) if order else ""]
    return "_".join(p for p in parts if p).replace(".", "_")


@dataclass(frozen=True)
class Weight:
    """The frozen linear that makes a site's value: y = x W^T + b, or x W where `transposed`.

    `rows` are the output features of the linear that belong to the site, in the site's order:
    all of them for a projection of its own, a part of them where several are fused in one.
    """

    node: fx.Node  # the linear, addmm or matmul
    name: str  # the weight's state_dict name
    bias: str | None
    rows: tuple[int, ...]
    out_width: int  # of the whole linear, fused parts included
    transposed: bool = False
    matrix: bool = True  # no: the kernels of a convolution, of one element and perhaps in groups

    @property
    def fused(self) -> bool:
        """Whether the linear also makes values of other sites."""
        return len(self.rows) != self.out_width


@dataclass(frozen=True)
class Lookup:
    """The ids that an embedding reads, and the rows of its table."""

    ids: fx.Node
    rows: int


@dataclass(frozen=True)
class Site:
    """One place of the graph, by role. `h` is the value there, which an insertion changes.

    Shapes: h (batch, length, width), x (batch, length, in_width), stream like h. Of a module named
    by its path h may have any shape; `features` is the axis of it that is `width` long.
    """

    role: str  # "attn.q", "ffn.out", "embed.out", ...
    layer: int | None  # order along the residual stream of its stack; None for embed.out
    stack: str  # "encoder", "decoder", or "" where the model has one stack
    module: str  # the path of the module that makes h, for people and for the lock file
    h: fx.Node
    width: int
    x: fx.Node | None = None  # the input of the piece of the model that makes h
    in_width: int | None = None
    stream: fx.Node | None = None  # the residual value that h will be added to
    readers: tuple[fx.Node, ...] = ()  # the nodes that read h and are to read the changed h
    weight: Weight | None = None
    lookup: Lookup | None = None  # of an embedding's output: what is looked up
    own: bool = False  # whether others that read h keep it: the input of one module
    order: int = 0  # among sites of one role, stack and layer
    features: int | None = -1  # the axis of h on which features stand; None where none is known

    @property
    def name(self) -> str:
        """A name valid in module paths, unique in a model: `decoder_layer3_attn_q`."""
        return joined(self.stack, self.layer, self.role, self.order)


@dataclass(frozen=True)
class Attention:
    """One attention core: softmax(scale q k^T + mask) v, as one SDPA node or written out.

    Shapes: q (batch, heads, length, head_dim), k (batch, heads, keys, head_dim),
    v (batch, heads, keys, value_dim), mask broadcastable to (batch, heads, length, keys).
    The projection makes kv_heads of them, each repeated heads / kv_heads times: in a row, or
    where `tiled` all of them in turn.
    """

    role: str  # "attn.kv" or "cross.kv"
    layer: int
    stack: str
    module: str
    node: fx.Node  # the SDPA node, or the softmax
    q: fx.Node
    k: fx.Node
    v: fx.Node
    mask: fx.Node | None
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    scores: fx.Node | None = None  # written out: the q k^T matmul
    output: fx.Node | None = None  # written out: the probabilities @ v matmul
    order: int = 0  # among attentions of one role, stack and layer
    tiled: bool = False

    @property
    def name(self) -> str:
        """A name valid in module paths: `decoder_layer3_attn_kv`."""
        return joined(self.stack, self.layer, self.role, self.order)


@dataclass(frozen=True)
class Position:
    """An edge through which token positions enter: the integer `positions` read by `reader`.

    Adding P to what `reader` reads moves every real token by P.
    """

    positions: fx.Node
    reader: fx.Node
    stack: str
    limit: int | None  # rows of the position table; None where positions are computed


@dataclass(frozen=True)
class Embedding:
    """The output of the token embedding of one stack: `ids` in, `h` (batch, length, width) out."""

    site: Site
    ids: fx.Node  # the placeholder
    table: str  # the weight's state_dict name


@dataclass(frozen=True)
class Sites:
    """Everything found in one Program. `layers` counts the blocks of each stack."""

    program: Program
    sites: tuple[Site, ...]
    attentions: tuple[Attention, ...]
    positions: tuple[Position, ...]
    embeddings: tuple[Embedding, ...]
    layers: dict[str, int]
    # The residual stream's last value of each stack, before the final norm and the head.
    ends: dict[str, fx.Node]
    # Frozen parameters by role: "norm", "bias", "head", "embed" -> state_dict names.
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def starts(self) -> tuple[Site, ...]:
        """What each stack's stream starts from: embedded tokens, patches or frames."""
        return tuple(s for s in self.sites if s.role == "embed.out")

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles this model has, in order of first appearance."""
        found = [s.role for s in self.sites] + [a.role for a in self.attentions]
        return tuple(dict.fromkeys(found))
