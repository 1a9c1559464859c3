"""What each operation of a captured graph does with its input, said once: operation -> traits.

`normalise` writes several operations in one way (`view` as `reshape`, `contiguous` as `clone`,
casts as `_to_copy`), so a Program has fewer operations than ATen. The table holds those that an
analysis or a pass asks about; whether an operation acts on single elements, and whether its result
shares memory with its input, ATen says itself.

    traits(node) & Trait.SHAPE                     # one question
    has(node, Trait.SHAPE | Trait.PART)            # whether it has any of these
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from enum import Flag, auto
from typing import Any

import torch
from torch import fx, nn
from torch._ops import OpOverload

aten = torch.ops.aten


class Trait(Flag):
    """What an operation does. One operation may have several traits.

    For y = f(x, ...), x being the first argument:
    """

    NONE = 0
    SHAPE = auto()  # y has every element of x once, in another shape, order or memory
    PART = auto()  # y has some elements of x, chosen by position: slices, splits, one of several
    EXPAND = auto()  # y has x again and again along an axis, as a view
    REPEAT = auto()  # y has x, or each of its elements, several times
    JOIN = auto()  # y has the elements of several values side by side, or of x and a constant
    PICK = auto()  # y has elements of x, chosen by integers or truth values that are data
    CAST = auto()  # y is x in another dtype or on another device
    DROPOUT = auto()  # y is x in eval mode
    ELEMENTWISE = auto()  # each element of y is computed from one of each input
    ARITHMETIC = auto()  # sums, differences, products and quotients: ELEMENTWISE too
    NONLINEAR = auto()  # activation functions, and what models use as such
    COMPARISON = auto()  # y says how x and another value compare: ELEMENTWISE too
    SELECTION = auto()  # y is x or a constant, by a mask: ELEMENTWISE too
    PRODUCT = auto()  # y sums products over an axis of x and one of another value
    PROJECTION = auto()  # a PRODUCT that models use for a linear layer and its weight
    CONVOLUTION = auto()  # y sums products over windows of x
    NORMALISATION = auto()  # y is x over a statistic of its features
    SOFTMAX = auto()  # y is exp(x) over its sum along an axis
    ATTENTION = auto()  # softmax(q k^T + mask) v in one kernel
    REDUCTION = auto()  # y has one number for several of x
    SCAN = auto()  # along an axis, y has at each place what x has up to there
    SHIFT = auto()  # y has x's elements at other places of an axis
    SPECTRUM = auto()  # a Fourier transform
    TRIANGLE = auto()  # y is x above or below a diagonal, zero elsewhere
    ANGLE = auto()  # cosines and sines, of which rotary positions are made
    LOOP = auto()  # a graph that runs another graph again and again
    COUNT = auto()  # y counts: 0, 1, 2, ... or a running sum of ones
    FACTORY = auto()  # y is made of sizes and constants alone
    BLANK = auto()  # y is made of x's size, dtype and device, and of none of its numbers
    SIZE = auto()  # y is a number that is read off x's shape
    ALIAS = auto()  # y is another view of x, for which no memory is needed


T = Trait
# By the operation, for all of its overloads. ELEMENTWISE and ALIAS are added from ATen's own tags
# and schemas, see `of`.
TABLE: dict[Any, Trait] = {
    **dict.fromkeys(
        (aten.reshape, aten.permute, aten.transpose, aten.t, aten.unsqueeze, aten.squeeze,
         aten.clone, aten.alias, aten.detach),
        T.SHAPE,
    ),
    **dict.fromkeys(
        (aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.chunk, aten.unbind,
         operator.getitem),
        T.PART,
    ),
    **dict.fromkeys((aten.expand, aten.expand_as), T.EXPAND),
    **dict.fromkeys((aten.repeat, aten.repeat_interleave), T.REPEAT),
    **dict.fromkeys((aten.cat, aten.stack, aten.constant_pad_nd), T.JOIN),
    **dict.fromkeys((aten.embedding, aten.index, aten.index_select, aten.gather), T.PICK),
    aten._to_copy: T.CAST,
    aten.dropout: T.DROPOUT,
    **dict.fromkeys(
        (aten.add, aten.sub, aten.mul, aten.div, aten.subtract, aten.multiply, aten.divide),
        T.ARITHMETIC,
    ),
    **dict.fromkeys(
        (aten.gelu, aten.relu, aten.silu, aten.sigmoid, aten.tanh, aten.erf, aten.softplus,
         aten.leaky_relu, aten.mish, aten.hardswish, aten.hardtanh, aten.elu, aten.celu, aten.relu6,
         aten.hardsigmoid, aten.glu, aten.log_sigmoid, aten.prelu, aten.pow, aten.square, aten.exp,
         aten.clamp),
        T.NONLINEAR,
    ),
    **dict.fromkeys(
        (aten.le, aten.lt, aten.ge, aten.gt, aten.eq, aten.ne), T.COMPARISON
    ),
    **dict.fromkeys((aten.where, aten.masked_fill), T.SELECTION),
    **dict.fromkeys((aten.__and__, aten.__or__, aten.__xor__), T.ELEMENTWISE),
    **dict.fromkeys(
        (aten.linear, aten.addmm, aten.mm, aten.matmul, aten.bmm), T.PRODUCT | T.PROJECTION
    ),
    aten.baddbmm: T.PRODUCT,
    **dict.fromkeys(
        (aten.conv1d, aten.conv2d, aten.conv3d, aten.convolution), T.CONVOLUTION
    ),
    **dict.fromkeys(
        (aten.layer_norm, aten.native_layer_norm, aten.group_norm, aten.native_group_norm,
         aten.batch_norm, aten.rms_norm),
        T.NORMALISATION,
    ),
    **dict.fromkeys((aten.softmax, aten._softmax, aten._safe_softmax), T.SOFTMAX),
    aten.scaled_dot_product_attention: T.ATTENTION,
    **dict.fromkeys(
        (aten.sum, aten.mean, aten.amax, aten.amin, aten.max, aten.min, aten.argmax, aten.argmin,
         aten.logsumexp, aten.var, aten.var_mean, aten.std, aten.prod, aten.any, aten.all),
        T.REDUCTION,
    ),
    aten.cumsum: T.SCAN | T.COUNT,
    aten.cumprod: T.SCAN,
    **dict.fromkeys((aten.roll, aten.flip), T.SHIFT),
    **dict.fromkeys(
        (aten._fft_c2c, aten._fft_r2c, aten._fft_c2r, aten.fft_fft, aten.fft_fftn), T.SPECTRUM
    ),
    **dict.fromkeys((aten.tril, aten.triu), T.TRIANGLE),
    **dict.fromkeys((aten.cos, aten.sin, aten.polar), T.ANGLE),
    torch.ops.higher_order.while_loop: T.LOOP,
    aten.arange: T.FACTORY | T.COUNT,
    **dict.fromkeys(
        (aten.zeros, aten.ones, aten.full, aten.empty, aten.eye, aten.scalar_tensor), T.FACTORY
    ),
    **dict.fromkeys(
        (aten.new_empty, aten.new_full, aten.new_ones, aten.new_zeros, aten.empty_like,
         aten.full_like, aten.ones_like, aten.zeros_like),
        T.BLANK,
    ),
    **dict.fromkeys((aten.sym_size, aten.sym_numel, aten.sym_stride), T.SIZE),
    # Two operations of one name: the larger of two values, not of one value's elements.
    aten.max.other: T.NONE,
    aten.min.other: T.NONE,
}  # fmt: skip


def traits(node: fx.Node) -> Trait:
    """What a node's operation does; none for inputs, weights and inserted pieces."""
    if node.op == "call_function":
        return of(node.target)
    if node.op == "call_module" and (root := node.graph.owning_module) is not None:
        module = root.get_submodule(str(node.target))
        return Trait.DROPOUT if isinstance(module, nn.Dropout) else Trait.NONE
    return Trait.NONE


def has(node: fx.Node, some: Trait) -> bool:
    """Whether a node's operation has any of these traits."""
    return bool(traits(node) & some)


@functools.cache
def of(target: Callable[..., Any] | str) -> Trait:
    """The traits of an operation: those of the table, and those that ATen says itself."""
    if not isinstance(target, OpOverload):
        found = TABLE.get(target, Trait.NONE)
        return found | Trait.ALIAS if found & Trait.PART else found
    found = TABLE.get(target, TABLE.get(target.overloadpacket, Trait.NONE))
    pointwise = torch.Tag.pointwise in target.tags and not found & Trait.SHAPE
    if pointwise or found & (Trait.ARITHMETIC | Trait.COMPARISON | Trait.SELECTION):
        found |= Trait.ELEMENTWISE
    if gives_views(target) or target.overloadpacket is aten.reshape:
        found |= Trait.ALIAS
    return found


def gives_views(target: OpOverload) -> bool:
    """Whether what an operation gives may share memory with what it is given."""
    return not target._schema.is_mutable and any(
        r.alias_info is not None for r in target._schema.returns
    )


def base_name(node: fx.Node) -> str:
    """The name of a node's operation without its overload: "linear", "add", "getitem", or ""."""
    if node.op != "call_function":
        return ""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return getattr(node.target, "__name__", "")
