"""E1xx: a spec that does not fit a model."""

from __future__ import annotations

from dataclasses import replace

import own_models
import torch
import zoo
from messages.cases import Here, case
from transformers import AutoModel, BeitConfig, BertModel, Wav2Vec2Config

import peftc
from peftc.capture import capture
from peftc.dataflow import find_sites
from peftc.planning.make import make_plan
from peftc.spec import load_spec

LOW_RANK = "delta: {low_rank: {rank: 4}}"
LLAMA = ("llama", "causal-lm")


@case("E101", "a module path with a typo")
def _(here: Here):
    here.insert(f"at: {{module: encoder.layer.*.qeury}}\n{LOW_RANK}", ("bert", "base"))


@case("E101", "a role that the model lacks")
def _(here: Here):
    here.insert("at: cross.kv\ndelta: {prefix: {tokens: 4}}")


@case("E101", "one entry of a list")
def _(here: Here):
    here.insert(f"at: [attn.q, attn.v, ffn.gate]\n{LOW_RANK}")


@case("E101", "a role that the model has, in no such layer")
def _(here: Here):
    here.insert(f"at: attn.q\nstack: decoder\n{LOW_RANK}")


@case("E101", "nothing to unfreeze")
def _(here: Here):
    rest = "unfreeze:\n  - {role: head}\n  - {module: encoder.layer.*.output.LayerNrom}\n"
    rest += "  - {module: encoder.layer.*.output.dense.bias}\n  - {parameter: '*.baias'}\n"
    here.insert("at: attn.out\ndelta: {bottleneck: {dim: 4}}", ("bert", "base"), rest)


@case("E101", "layers of which none has the role")
def _(here: Here):
    sites = find_sites(zoo.captured("bert").clone())
    few = tuple(s for s in sites.sites if s.role != "attn.q" or s.layer != 1)
    text = (
        f"peftc: 1\nname: n\ninsert:\n  - id: a\n    at: attn.q\n    layers: odd\n    {LOW_RANK}\n"
    )
    make_plan(load_spec(here.write(text)), replace(sites, sites=few))


@case("E102", "another number of sites than expected")
def _(here: Here):
    rest = "expect: {sites: 2 per layer}\n"
    here.insert("at: attn.out\ndelta: {bottleneck: {dim: 4}}", rest=rest)


@case("E103", "a rank that is no reduction")
def _(here: Here):
    here.insert("at: [attn.q, attn.v]\ndelta: {low_rank: {rank: 20}}", LLAMA)


@case("E104", "a tensor of another shape")
def _(here: Here):
    from sealing import reseal

    from peftc.artifact.lock import SPEC

    folder = here.artifact()
    path = folder / SPEC
    path.write_text(path.read_text().replace("rank: 8", "rank: 6"))
    reseal(folder)
    peftc.load(folder, here.program)


@case("E106", "labels without a head")
def _(here: Here):
    graph = peftc.apply("lora", zoo.captured("bert", "base"))
    graph(**zoo.inputs(zoo.model("bert")), labels=torch.tensor([0, 1, 0]))


@case("E106", "rows for a model without a head")
def _(here: Here):
    from peftc.train import read_rows

    here.write('{"text": "a", "label": 0}\n', "rows.jsonl")
    read_rows("rows.jsonl", peftc.apply("lora", zoo.captured("bert", "base")), None)


@case("E107", "layers that the model does not have")
def _(here: Here):
    here.insert("at: attn.out\nlayers: last 8\ndelta: {bottleneck: {dim: 4}}")


@case("E108", "nothing to train")
def _(here: Here):
    from peftc.train import Rows, train

    graph = peftc.apply({"peftc": 1, "name": "n", "insert": []}, here.program)
    train(graph, Rows([]), pad=0, steps=1)


@case("E109", "a low-rank update where no linear stands")
def _(here: Here):
    here.insert(f"at: {{module: encoder.layer.*.attention.output}}\n{LOW_RANK}", ("bert", "base"))


@case("E110", "an attention that no prefix can enter")
def _(here: Here):
    config = zoo.CONFIGS["bert"]()
    config.num_hidden_layers = 1
    program = capture(BertModel._from_config(config, attn_implementation="eager").eval())
    softmax = next(n for n in program.graph.nodes if n.target is torch.ops.aten.softmax.int)
    with program.graph.inserting_before(softmax):
        step = program.graph.call_function(torch.ops.aten.nan_to_num.default, softmax.args[:1])
    step.meta = dict(softmax.args[0].meta)
    softmax.replace_input_with(softmax.args[0], step)
    program.recompile()
    peftc.apply("ptuning2", program)


@case("E120", "a direction of weights whose rows are not one block")
def _(here: Here):
    model = own_models.OwnModel(own_models.OwnConfig("alibi, interleaved")).eval()
    text = "peftc: 1\nname: n\ninsert:\n  - {id: a, at: attn.q, delta: {dora: {rank: 2}}}\n"
    peftc.plan(here.write(text), capture(model))


@case("E121", "a prompt that takes every position")
def _(here: Here):
    here.insert("at: embed.out\ndelta: {prompt: {tokens: 64}}")


@case("E121", "prefixes that leave less than the graph's one length")
def _(here: Here):
    program = zoo.captured_once(zoo.model("gpt2", "base"), static_length=60)
    peftc.plan(here.write("peftc: 1\nname: n\ninsert:\n  - {id: a, at: attn.kv, delta: "
                          "{prefix: {tokens: 5}}}\n"), program)  # fmt: skip


@case("E122", "a text longer than what a prefix leaves")
def _(here: Here):
    graph = peftc.apply("ptuning2", here.program, set={"tokens": 10})
    graph(input_ids=torch.ones(1, 55, dtype=torch.long))


@case("E112", "steps that do not end with the site's features")
def _(here: Here):
    here.insert("at: ffn.out\ndelta: {pipe: [{linear: {out: 8}}, {act: relu}]}")


@case("E113", "a prompt stands before all layers")
def _(here: Here):
    peftc.without(peftc.apply("prompt", here.program), "0-1")


@case("E113", "nothing stands in these layers")
def _(here: Here):
    spec = here.write(
        "peftc: 1\nname: n\ninsert:\n"
        "  - {id: a, at: ffn.out, layers: 0, delta: {bottleneck: {dim: 8}}}\n"
    )
    peftc.without(peftc.apply(spec, here.program), 1)


@case("E114", "labels without names")
def _(here: Here):
    here.insert("at: embed.out\ndelta: {prompt: {tokens: 8, init: labels}}")


@case("E114", "too few hidden features")
def _(here: Here):
    here.insert(
        "at: attn.kv\ndelta: {prefix: {tokens: 8, reparam: {hidden: 4}, init: {text: a cat}}}"
    )


@case("E114", "an id that the model does not have")
def _(here: Here):
    spec = here.write(
        "peftc: 1\nname: n\ninsert:\n"
        "  - {id: a, at: embed.out, delta: {prompt: {tokens: 2, init: {ids: [4, 300]}}}}\n"
    )
    peftc.apply(spec, here.program)


@case("E114", "features that are not independent")
def _(here: Here):
    spec = here.write(
        "peftc: 1\nname: n\ninsert:\n  - id: a\n    at: embed.out\n    delta:\n"
        "      prompt: {tokens: 6, encoder: {kind: mlp, hidden: 6}, init: {ids: [4, 5, 6, 7]}}\n"
    )
    peftc.apply(spec, here.program)


@case("E115", "two ensembles")
def _(here: Here):
    here.plan(
        "peftc: 1\nname: n\ninsert:\n"
        "  - {id: a, at: embed.out, delta: {prompt: {tokens: 3, ensemble: 2}}}\n"
        "  - {id: b, at: embed.out, delta: {prompt: {tokens: 2, ensemble: 4}}}\n"
    )


@case("E115", "no classes")
def _(here: Here):
    spec = here.write(
        "peftc: 1\nname: n\ninsert:\n"
        "  - {id: a, at: embed.out, delta: {prompt: {tokens: 2, ensemble: 3}}}\n"
    )
    peftc.plan(spec, zoo.captured("bert"))


@case("E116", "a token of another vocabulary")
def _(here: Here):
    here.plan(
        "peftc: 1\nname: n\ninsert:\n"
        "  - {id: a, at: attn.kv, delta: {prefix: {tokens: 3, before: 50256}}}\n"
    )


@case("E117", "a value whose features stand on no axis")
def _(here: Here):
    config = Wav2Vec2Config(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40,
        conv_dim=(12, 14), conv_stride=(4, 2), conv_kernel=(5, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    at = {"module": "feature_extractor", "end": "input"}
    entry = {"id": "a", "at": at, "delta": "vector"}
    peftc.plan({"peftc": 1, "name": "n", "insert": [entry]}, AutoModel.from_config(config))


@case("E118", "a prompt beside patches whose relative positions stand in a table")
def _(here: Here):
    config = BeitConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40,
        image_size=12, patch_size=4, use_relative_position_bias=True, out_indices=[1],
    )  # fmt: skip
    entry = {"id": "a", "at": "embed.out", "delta": {"prompt": {"tokens": 4}}}
    peftc.plan({"peftc": 1, "name": "n", "insert": [entry]}, AutoModel.from_config(config))


@case("E114", "a prompt beside patches that starts from words")
def _(here: Here):
    prompt = "delta: {prompt: {tokens: 4, init: vocab}}"
    here.insert(f"at: embed.out\n{prompt}", ("vit", "image-classification"))


@case("E118", "a prompt beside patches that is to stay")
def _(here: Here):
    prompt = "delta: {prompt: {tokens: 4}}\ncompose: {prepend: {trim: false}}"
    here.insert(f"at: embed.out\n{prompt}", ("vit", "image-classification"))
