"""A prompt beside the patches of an image or the frames of a sound, against hooks on the model."""

from __future__ import annotations

import contextlib

import pytest
import tiny
import torch
from transformers import (
    AutoModelForImageClassification,
    SwinConfig,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

import peftc
from peftc.capture import capture
from peftc.dataflow import find_sites
from peftc.dataflow.naming import numbered_path

TASKS = {
    "vit": "image-classification",
    "dinov2": "image-classification",
    "siglip": "image-classification",
    "audio-spectrogram-transformer": "audio-classification",
    "wav2vec2": "audio-classification",
}
TOKENS = 4


def spec(place="before", **more):
    prompt = {"tokens": TOKENS, "init": "normal", "place": place}
    entry = {"id": "p", "at": "embed.out", "delta": {"prompt": prompt}, **more}
    return {"peftc": 1, "name": "vpt", "insert": [entry]}


def grown(mask, first):
    """A mask, (batch, 1, length or 1, length), with entries that keep at the prompt's place."""
    keep = True if mask.dtype == torch.bool else 0.0
    for axis in (-1, -2):
        if mask.shape[axis] > 1:
            shape = list(mask.shape)
            shape[axis] = TOKENS
            head, rest = mask.split([first, mask.shape[axis] - first], axis)
            mask = torch.cat([head, mask.new_full(shape, keep), rest], axis)
    return mask


@contextlib.contextmanager
def prompted(model, sites, rows, first):
    """The plain model with the rows before its first layer and without them behind its last."""
    paths = dict.fromkeys(numbered_path(a.module) for a in sites.attentions)
    layers = [model.get_submodule(p) for p in paths]

    def longer(module, args, kwargs):
        args, kwargs = list(args), dict(kwargs)
        if module is layers[0]:
            h = args[0] if args else kwargs["hidden_states"]
            p = rows.expand(len(h), -1, -1)
            h = torch.cat([h[:, :first], p, h[:, first:]], 1)
            if args:
                args[0] = h
            else:
                kwargs["hidden_states"] = h
        for held in (*((args, k) for k in range(1, len(args))), (kwargs, "attention_mask")):
            values, key = held
            mask = values.get(key) if isinstance(values, dict) else values[key]
            if isinstance(mask, torch.Tensor):
                values[key] = grown(mask, first)
        return tuple(args), kwargs

    def shorter(module, args, output):
        h = output[0] if isinstance(output, tuple) else output
        h = torch.cat([h[:, :first], h[:, first + TOKENS :]], 1)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    hooks = [m.register_forward_pre_hook(longer, with_kwargs=True) for m in layers]
    hooks.append(layers[-1].register_forward_hook(shorter))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", TASKS)
def test_rows_are_those_of_a_hook_on_the_model(name):
    model = tiny.build(name, TASKS[name])
    program = capture(model)
    sites = find_sites(program.clone())
    assert [s.role for s in sites.sites].count("embed.out") == 1
    for place, first in (("before", 0), ("after_first", 1)):
        graph = peftc.apply(spec(place), program)
        piece = graph.get_submodule("peft.p.embed_out")
        piece.embedding.data.normal_(generator=torch.Generator().manual_seed(1))
        for shape in ((2, 17), (3, 12)):
            given = tiny.inputs(model, *shape)
            with prompted(model, sites, piece.embedding, first):
                wanted = model(**given).logits
            found = graph(**given).logits
            assert (wanted - model(**given).logits).abs().max() > 1e-3
            assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
            ours, theirs = (
                torch.autograd.grad(x.square().sum(), piece.embedding)[0] for x in (found, wanted)
            )
            assert ours.any()
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max())


def test_attention_that_is_written_out_is_followed_as_well():
    model = tiny.build("vit", TASKS["vit"])
    model.set_attn_implementation("eager")
    program = capture(model)
    graph = peftc.apply(spec("after_first"), program)
    rows = graph.get_submodule("peft.p.embed_out").embedding
    given = tiny.inputs(model, 2, 9)
    with torch.no_grad(), prompted(model, find_sites(program), rows, 1):
        assert torch.allclose(graph(**given).logits, model(**given).logits, atol=1e-5)


def test_a_decoder_reads_the_rows_of_its_encoder():
    config = WhisperConfig(
        d_model=24, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=40, decoder_ffn_dim=36, num_mel_bins=10,
        max_source_positions=30, max_target_positions=80, vocab_size=99, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(config).eval()
    for p in model.parameters():
        p.data.normal_(std=0.2)
    graph = peftc.apply(spec(), model)
    [(name, rows)] = graph.peft_parameters()
    assert name == "peft.p.encoder_embed_out.embedding"

    def longer(module, args):
        return (torch.cat([rows.expand(len(args[0]), -1, -1), args[0]], 1), *args[1:])

    given = {
        "input_features": torch.randn(2, 10, 60),
        "decoder_input_ids": torch.randint(3, 90, (2, 5)),
    }
    with torch.no_grad():
        plain = model(**given).logits
        hook = model.model.encoder.layers[0].register_forward_pre_hook(longer)
        wanted = model(**given).logits
        hook.remove()
        found = graph(**given)
    assert (wanted - plain).abs().max() > 1e-3
    assert torch.allclose(found.logits, wanted, atol=1e-5)
    assert found.encoder_last_hidden_state.shape == (2, 30, 24)


def test_other_pieces_stand_beside_a_prompt():
    """The last layer's pieces, a prefix and a vector on the patches, in any order of the spec."""
    program = capture(tiny.build("vit", TASKS["vit"]))
    others = [
        {"id": "a", "at": ["ffn.out", "block.out"], "delta": {"bottleneck": {"dim": 3}}},
        {"id": "k", "at": "attn.kv", "delta": {"prefix": {"tokens": 3}}},
        {"id": "q", "at": "attn.q", "delta": {"low_rank": {"rank": 2}}},
    ]
    [prompt] = spec()["insert"]
    results = []
    for insert in ([prompt, *others], [*others, prompt]):
        graph = peftc.apply({"peftc": 1, "name": "n", "insert": insert}, program)
        for name, p in sorted(graph.peft_parameters()):
            seed = sum(map(ord, name))
            p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        given = tiny.inputs(tiny.build("vit", TASKS["vit"]), 2, 9)
        logits = graph(**given).logits
        gradients = torch.autograd.grad(
            logits.square().sum(), [p for _, p in graph.peft_parameters()]
        )
        assert all(g.any() for g in gradients)
        results.append(logits)
    assert torch.allclose(*results, atol=1e-5)


def test_a_table_of_relative_places_is_refused():
    config = tiny.shrink("beit", sensed=True)
    config.use_relative_position_bias = True
    beit = AutoModelForImageClassification.from_config(config).eval()
    wavlm = tiny.build("wavlm", "audio-classification")
    for model in (beit, wavlm):
        with pytest.raises(peftc.PeftcError, match=r"E118.*a value of its own for each place"):
            peftc.plan(spec(), model)


def test_windows_are_refused():
    config = SwinConfig(
        image_size=24, patch_size=4, embed_dim=12, depths=[2, 1], num_heads=[2, 4], window_size=3
    )
    model = AutoModelForImageClassification.from_config(config).eval()
    with pytest.raises(peftc.PeftcError, match=r"E118.*as a grid or in windows"):
        peftc.plan(spec(), model)


def test_a_prompt_before_an_image_cannot_start_from_words_nor_stay():
    program = capture(tiny.build("vit", TASKS["vit"]))
    with pytest.raises(peftc.PeftcError, match=r"E114.*no words"):
        peftc.plan("prompt", program)
    with pytest.raises(peftc.PeftcError, match=r"E118.*cut away again"):
        peftc.plan(spec(compose={"prepend": {"trim": False}}), program)
