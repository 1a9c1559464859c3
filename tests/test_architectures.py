"""Forty-two types that span what transformers do: every insertion on each, against references.

The sweep over all types is benchmarks/coverage.py; this is the part of it that always runs.
"""

from __future__ import annotations

import coverage as sweep
import pytest

TYPES = {
    "bert": "post-norm encoder",
    "roberta": "positions from ids",
    "distilbert": "no token types",
    "albert": "one layer shared by all",
    "electra": "embeddings narrower than the stream",
    "modernbert": "fused projections, local attention",
    "deberta-v2": "disentangled attention, heads flattened into the batch",
    "esm": "embeddings scaled by masked tokens",
    "xlm": "masks multiplied into the stream",
    "squeezebert": "a channel-first stream, convolutions for linears",
    "mobilebert": "bottlenecks and stacked feed-forwards of its own",
    "gpt2": "Conv1D, fused projections",
    "gpt_bigcode": "multi-query attention",
    "gpt_neox": "interleaved fused projections, parallel blocks",
    "gpt_neox_japanese": "written-out attention with flattened heads and a cache",
    "gptj": "parallel blocks, table of angles",
    "falcon": "parallel blocks, multi-query",
    "bloom": "distance biases, flattened heads",
    "mpt": "distance biases",
    "opt": "learned positions with an offset",
    "xglm": "written-out attention with flattened heads",
    "openai-gpt": "masks multiplied into the scores",
    "llama": "grouped queries, rotary positions",
    "llama4_text": "complex rotary positions, experts",
    "mistral": "sliding window",
    "qwen2": "biases on q, k and v",
    "qwen3": "norms on queries and keys",
    "gemma2": "soft caps, sandwich norms",
    "gemma3": "a multimodal wrapper",
    "gemma4_text": "per-layer inputs, sizes by layer",
    "phi": "partial rotary positions",
    "phi3": "fused qkv and gate-up",
    "cohere": "parallel blocks",
    "olmo2": "norms behind the branches",
    "granitemoe": "scaled branches",
    "gpt_oss": "sinks, experts",
    "mixtral": "experts",
    "deepseek_v3": "latent attention, shared experts",
    "falcon_h1": "a mixer beside attention",
    "bamba": "a mixer or attention",
    "t5": "relative biases, two stacks",
    "m2m_100": "two stacks",
    "encoder-decoder": "two models in one",
}
# The plain model cannot be asked for these: no cache, or one with another meaning.
NO_REFERENCE = {
    "gpt_neox_japanese": {"bottleneck"},
    "bloom": {"prefix"},
    "deberta-v2": {"prefix"},
    "distilbert": set(),
    "gemma4_text": {"prompt"},
    "mpt": {"prefix"},
    "mobilebert": set(),
    "openai-gpt": {"prefix"},
    "xlm": {"prefix"},
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.filterwarnings("ignore")
def test_every_insertion_works(name, monkeypatch):
    import tiny

    if name == "falcon_h1":  # all its layers are alike, and one takes ten seconds to trace
        monkeypatch.setitem(tiny.MORE, name, {**tiny.MORE[name], "num_hidden_layers": 1})
    row = sweep.case(name, dict(tiny.types())[name])
    assert row.get("all_roles"), row
    assert row["attention_calls"] is not False, "the attentions are not those that the model calls"
    for method in sweep.METHODS:
        if (name, method) == ("mobilebert", "bottleneck"):
            continue  # forty adapters on a stream of large values: compared by the vector alone
        assert sweep.ok(row, method), (method, row[method])
        if method not in NO_REFERENCE.get(name, ()):
            assert sweep.compared(row[method]) is not None, (method, row[method])
