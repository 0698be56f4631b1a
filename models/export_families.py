#!/usr/bin/env python3
"""Exports small Mixture-of-Experts models of transformers' own classes, the way their users export them.

    pip install torch==2.13.0 transformers onnx onnxscript
    python models/export_families.py --list
    python models/export_families.py mixtral --exporter dynamo --experts batched_mm -o build/mixtral
    python models/export_families.py all --every-way -o build/families --stgcc build/release/stgcc

A folder is written for each: model.onnx; batch.npz (inputs and labels); expected.npz (out/logits, computed by PyTorch in float32);
about.json (what scripts/matrix reads); and, where a stgcc is found, recipe.yaml (`stgcc init`) and a comparison of `stgcc run`
with PyTorch. The batch is another one than the exporter saw, with other tokens and, unless --static, another shape: an export
into which the exporter's own batch has been frozen gives other logits.

Weights come from a fixed seed. They are larger than a fresh model's, and no two tensors are equal: an exporter merges equal
initializers, and a wrong route or a lost bias must show. --every-way exports every family named in each of the ways its class
has, and writes NAME.log beside the folders where an exporter refuses.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import traceback

os.environ["HF_HUB_OFFLINE"] = "1"
import numpy as np
import onnx
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

HIDDEN, INNER, VOCAB = 32, 24, 96
WAYS = [("legacy", "static_loop"), ("dynamo", "static_loop"), ("dynamo", "batched_mm"), ("hf", "grouped_mm")]
ONE_WAY = [("legacy", "eager"), ("dynamo", "eager"), ("hf", "eager")]   # classes whose experts run in one way only


def decoder(layers=2, drop=(), **more):
    """What nearly every decoder's configuration takes, and what one adds to it or does not know."""
    out = dict(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=layers,
               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, bos_token_id=1,
               eos_token_id=2, tie_word_embeddings=False, use_cache=False)
    out.update(more)
    return {k: v for k, v in out.items() if k not in drop}


def encoder_decoder(**more):
    return dict(vocab_size=VOCAB, d_model=HIDDEN, num_experts=4, use_cache=False, tie_word_embeddings=False,
                decoder_start_token_id=0, **more)


MLA = dict(kv_lora_rank=16, q_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4)

# name: (transformers' model type, experts, chosen per token, MoE layers, configuration, what is particular)
FAMILIES = {
    "mixtral": ("mixtral", 8, 2, 2, decoder(num_local_experts=8, num_experts_per_tok=2), "softmax over the chosen"),
    "qwen2moe": ("qwen2_moe", 5, 2, 2, decoder(
        num_experts=5, num_experts_per_tok=2, moe_intermediate_size=INNER, shared_expert_intermediate_size=INNER + 8,
        norm_topk_prob=False), "shared expert behind a sigmoid gate"),
    "qwen3moe": ("qwen3_moe", 8, 2, 2, decoder(
        num_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, norm_topk_prob=True, head_dim=8),
        "norms of query and key"),
    "olmoe": ("olmoe", 8, 4, 2, decoder(num_experts=8, num_experts_per_tok=4, norm_topk_prob=False),
              "weights not renormalised"),
    "flexolmo": ("flex_olmo", 4, 2, 2, decoder(num_experts=4, num_experts_per_tok=2, norm_topk_prob=False),
                 "norms after the blocks"),
    "gptoss": ("gpt_oss", 4, 2, 2, decoder(num_local_experts=4, num_experts_per_tok=2, head_dim=8, sliding_window=8),
               "biases, interleaved gate and up, clamps, attention sinks"),
    "deepseekv2": ("deepseek_v2", 8, 2, 2, decoder(
        3, **MLA, moe_intermediate_size=INNER, n_shared_experts=1, n_routed_experts=8, num_experts_per_tok=2,
        first_k_dense_replace=1, n_group=1, topk_group=1, topk_method="greedy", routed_scaling_factor=1.5),
        "latent attention, shared expert, scaled"),
    "deepseekv3": ("deepseek_v3", 8, 2, 2, decoder(
        3, **MLA, moe_intermediate_size=INNER, n_shared_experts=1, n_routed_experts=8, num_experts_per_tok=2, n_group=4,
        topk_group=2, first_k_dense_replace=1), "sigmoid scores, groups, correction bias, shared expert"),
    "dots1": ("dots1", 8, 2, 2, decoder(
        3, moe_intermediate_size=INNER, n_shared_experts=1, n_routed_experts=8, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, norm_topk_prob=True), "as DeepSeek-V3 with plain attention"),
    "glm4moe": ("glm4_moe", 8, 2, 2, decoder(
        3, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, n_shared_experts=1, n_group=1,
        topk_group=1, first_k_dense_replace=1, routed_scaling_factor=1.5, head_dim=8), "one group, scaled"),
    "granitemoe": ("granitemoe", 8, 2, 2, decoder(num_local_experts=8, num_experts_per_tok=2), "multipliers"),
    "granitemoeshared": ("granitemoeshared", 4, 2, 2, decoder(
        num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=INNER + 8), "and a shared expert"),
    "phimoe": ("phimoe", 4, 2, 2, decoder(num_local_experts=4, num_experts_per_tok=2), "sparsemixer"),
    "ernie45moe": ("ernie4_5_moe", 8, 2, 2, decoder(
        3, moe_num_experts=8, moe_k=2, moe_intermediate_size=INNER, moe_num_shared_experts=1, moe_layer_start_index=1),
        "bias on the choice only"),
    "lfm2moe": ("lfm2_moe", 8, 2, 3, decoder(
        4, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, num_dense_layers=1, conv_L_cache=3,
        layer_types=["conv", "full_attention"] * 2), "short convolutions"),
    "jamba": ("jamba", 4, 2, 2, decoder(
        4, num_experts=4, num_experts_per_tok=2, expert_layer_period=2, expert_layer_offset=1, attn_layer_period=2,
        attn_layer_offset=1, use_mamba_kernels=False, mamba_d_state=4, mamba_d_conv=2, mamba_dt_rank=4), "Mamba layers"),
    "dbrx": ("dbrx", 4, 2, 2, dict(
        d_model=HIDDEN, n_heads=4, n_layers=2, max_seq_len=128, vocab_size=VOCAB, use_cache=False,
        attn_config=dict(kv_n_heads=2, clip_qkv=8.0, rope_theta=1e4),
        ffn_config=dict(hidden_size=HIDDEN, ffn_hidden_size=INNER, moe_num_experts=4, moe_top_k=2,
                        ffn_act_fn={"name": "silu"})), "experts flat in one matrix"),
    "hunyuanmoe": ("hunyuan_v1_moe", 4, 2, 2, decoder(num_experts=4, moe_topk=2, head_dim=8), "shared MLP"),
    "afmoe": ("afmoe", 8, 2, 2, decoder(
        3, head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, num_dense_layers=1, sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]), "sigmoid, gated attention"),
    "aria_text": ("aria_text", 8, 2, 3, decoder(3, head_dim=8, moe_num_experts=8, moe_topk=2), "shared experts"),
    "cohere2_moe": ("cohere2_moe", 8, 2, 3, decoder(
        3, head_dim=8, num_experts=8, num_experts_per_tok=2, sliding_window=8, mlp_layer_types=["sparse"] * 3,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]), "parallel blocks"),
    "exaone_moe": ("exaone_moe", 8, 2, 2, decoder(
        3, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, n_group=2, topk_group=1, sliding_window=8,
        first_k_dense_replace=1, mlp_layer_types=["dense", "sparse", "sparse"],
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]), "sigmoid, groups"),
    "granitemoe_swa": ("granitemoe_swa", 8, 2, 3, decoder(
        3, num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=INNER, sliding_window=8,
        layer_types=["full_attention", "sliding_attention", "full_attention"]), "sliding attention"),
    "granitemoehybrid": ("granitemoehybrid", 8, 2, 3, decoder(
        3, num_local_experts=8, num_experts_per_tok=2, shared_intermediate_size=INNER, mamba_n_heads=4, mamba_n_groups=1,
        mamba_d_state=8, mamba_d_head=16, mamba_d_conv=3, mamba_expand=2, mamba_chunk_size=8,
        layer_types=["mamba", "attention", "mamba"]), "Mamba-2 layers"),
    "hy_v3": ("hy_v3", 8, 2, 2, decoder(
        3, head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER,
        mlp_layer_types=["dense", "sparse", "sparse"]), "sigmoid, choice bias"),
    "laguna": ("laguna", 8, 2, 2, decoder(
        3, head_dim=8, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, shared_expert_intermediate_size=INNER,
        sliding_window=8, layer_types=["full_attention"] * 3, mlp_layer_types=["dense", "sparse", "sparse"]), "sigmoid"),
    "mellum": ("mellum", 8, 2, 3, decoder(
        3, head_dim=8, num_local_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, sliding_window=8,
        layer_types=["full_attention"] * 3, mlp_layer_types=["sparse"] * 3, mtp_layer_types=None, mtp_mlp_layer_types=None),
        "softmax, renormalised"),
    "mimo_v2_flash": ("mimo_v2_flash", 8, 2, 2, decoder(
        3, head_dim=8, v_head_dim=8, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=INNER, n_group=2,
        topk_group=1, sliding_window=8, layer_types=["full_attention", "sliding_attention", "full_attention"],
        mlp_layer_types=["dense", "sparse", "sparse"]), "sigmoid, groups, attention sinks"),
    "jetmoe": ("jetmoe", 4, 2, 2, decoder(
        drop=("num_attention_heads",), num_local_experts=4, num_experts_per_tok=2, kv_channels=8),
        "experts in the attention too"),
    "llama4": ("llama4_text", 4, 1, 2, decoder(
        4, intermediate_size_mlp=2 * INNER, num_local_experts=4, num_experts_per_tok=1, interleave_moe_layer_step=2,
        head_dim=8, attention_chunk_size=64), "sigmoid, the expert's input is scaled, all experts on all tokens"),
    "switch": ("switch_transformers", 4, 1, 2, encoder_decoder(
        d_kv=8, d_ff=INNER, num_heads=4, num_layers=2, num_decoder_layers=2, num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1, expert_capacity=3, dropout_rate=0.0, router_jitter_noise=0.0),
        "capacity, dropped tokens; encoder and decoder"),
    "nllb": ("nllb-moe", 4, 2, 2, encoder_decoder(
        encoder_layers=2, decoder_layers=2, encoder_ffn_dim=INNER, decoder_ffn_dim=INNER, encoder_attention_heads=4,
        decoder_attention_heads=4, expert_capacity=64, encoder_sparse_step=2, decoder_sparse_step=2, dropout=0.0,
        attention_dropout=0.0, max_position_embeddings=128), "capacity; encoder and decoder"),
}


class Logits(torch.nn.Module):
    """Tensors in, logits out: no key-value cache, no structure of results."""

    def __init__(self, hf):
        super().__init__()
        self.hf = hf


class Decoder(Logits):
    def forward(self, input_ids):
        return self.hf(input_ids=input_ids, use_cache=False).logits


class MaskedDecoder(Logits):
    def forward(self, input_ids, attention_mask):
        return self.hf(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


class EncoderDecoder(Logits):
    def forward(self, input_ids, decoder_input_ids):
        return self.hf(input_ids=input_ids, decoder_input_ids=decoder_input_ids, use_cache=False,
                       attention_mask=torch.ones_like(input_ids),
                       decoder_attention_mask=torch.ones_like(decoder_input_ids)).logits


def randomise(hf, seed):
    g = torch.Generator().manual_seed(seed)
    biases = [(n, b) for n, b in hf.named_buffers() if n.endswith("bias") and b.is_floating_point()]
    with torch.no_grad():
        for name, p in list(hf.named_parameters()) + biases:
            noise = torch.randn(p.shape, generator=g)
            if re.search(r"A_log|\.D$", name):          # a state space's poles: their own values keep it stable
                p.add_(0.05 * noise)
            elif p.dim() > 1 and "bias" not in name:
                p.copy_(noise * 1.2 / HIDDEN ** 0.5)
            else:
                p.copy_(0.1 * noise + (1.0 if "norm" in name and "bias" not in name else 0.0))


def turn_pairs(x, angle):
    """A rotary embedding of neighbouring pairs by the angles' cosine and sine."""
    cos, sin = angle[:, :, None, :].cos(), angle[:, :, None, :].sin()
    a, b = x[..., 0::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def help_exporters(hf):
    """What no exporter takes is said in another way; no value changes."""
    if hasattr(hf.config, "attention_chunk_size"):      # Llama-4 turns pairs as complex numbers, which ONNX lacks
        from transformers.models.llama4 import modeling_llama4
        modeling_llama4.apply_rotary_emb = lambda q, k, angle: (turn_pairs(q, angle), turn_pairs(k, angle))
        for m in hf.modules():
            if type(m).__name__ == "Llama4TextRotaryEmbedding":
                m.forward = lambda x, position_ids, m=m: position_ids[..., None].float() * m.inv_freq
    for m in hf.modules():                              # these routers move their own weights to a type in every call
        if type(m).__name__ in ("SwitchTransformersTop1Router", "NllbMoeTop2Router"):
            m.classifier.to = lambda *_, layer=m.classifier, **__: layer


def build(family, mask, seed=1):
    kind, experts, chosen, layers, config, _ = FAMILIES[family]
    config = AutoConfig.for_model(kind, **config)
    two = getattr(config, "is_encoder_decoder", False)
    torch.manual_seed(seed)
    hf = (AutoModelForSeq2SeqLM if two else AutoModelForCausalLM).from_config(config).float().eval()
    randomise(hf, seed)
    help_exporters(hf)
    return (EncoderDecoder if two else MaskedDecoder if mask else Decoder)(hf).eval()


def batch(model, rows, length, seed):
    g = torch.Generator().manual_seed(seed)
    out = {"input_ids": torch.randint(3, VOCAB, (rows, length), generator=g)}
    if isinstance(model, EncoderDecoder):
        out["decoder_input_ids"] = torch.randint(3, VOCAB, (rows, length - 2), generator=g)
    if isinstance(model, MaskedDecoder):
        out["attention_mask"] = torch.ones(rows, length, dtype=torch.int64)
        out["attention_mask"][0, :3] = 0
    return out


# Loops over all experts that trace: none is skipped because the exporter's own batch did not choose it.

def slots_of(index, experts):
    """(expert, tokens, slots) for each expert; the tokens may be none."""
    for e in range(experts):
        token, slot = torch.where(index == e)
        yield e, token, slot


def stacked_loop(self, x, index, weight):
    """transformers' experts modules with stacked weights."""
    def linear(x, stack, bias, e):
        return x @ (stack[e] if self.is_transposed else stack[e].t()) + (bias[e] if self.has_bias else 0.0)
    first = "gate_up_proj" if self.has_gate else "up_proj"
    y = torch.zeros_like(x)
    for e, token, slot in slots_of(index, self.num_experts):
        h = linear(x[token], getattr(self, first), getattr(self, first + "_bias", None), e)
        h = self._apply_gate(h) if self.has_gate else self.act_fn(h)
        h = linear(h, self.down_proj, getattr(self, "down_proj_bias", None), e)
        y = y.index_add(0, token, h * weight[token, slot, None])
    return y


def dbrx_loop(self, x, index, weight):
    flat = x.reshape(-1, x.shape[-1])
    shape = (self.num_experts, self.ffn_hidden_size, self.hidden_size)
    w1, v1, w2 = (p.view(shape) for p in (self.mlp.w1, self.mlp.v1, self.mlp.w2))
    y = torch.zeros_like(flat)
    for e, token, slot in slots_of(index, self.num_experts):
        y = y.index_add(0, token, self.mlp(flat[token], w1[e], v1[e], w2[e]) * weight[token, slot, None])
    return y.view(x.shape)


def switch_loop(self, x, chosen, weight):
    y = torch.zeros_like(x)
    for e in range(self.num_experts):                   # chosen [tokens, 1, experts] is 0 where a token was dropped
        token, slot = torch.where(chosen[:, :, e])
        y = y.index_add(0, token, self[f"expert_{e}"](x[token]) * weight[token, slot, None])
    return y


OWN_LOOPS = {"DbrxExperts": dbrx_loop, "SwitchTransformersExperts": switch_loop}


def can_choose(model):
    return getattr(model.hf, "_can_set_experts_implementation", lambda: False)()


def ways_of(model):
    own = any(type(m).__name__ in OWN_LOOPS for m in model.modules())
    return WAYS if can_choose(model) else [w for w in WAYS if w[1] == "static_loop"] if own else ONE_WAY


def set_experts(model, experts):
    own = [m for m in model.modules() if type(m).__name__ in OWN_LOOPS] if experts == "static_loop" else []
    for m in own:
        m.forward = OWN_LOOPS[type(m).__name__].__get__(m)
    if own or experts == "eager":
        return
    if not can_choose(model):
        raise ValueError(f"{type(model.hf).__name__} has one way to run its experts (eager), not {experts}")
    if experts == "static_loop":
        ALL_EXPERTS_FUNCTIONS.register(experts, stacked_loop)
        for config in {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values():
            config._experts_implementation = experts    # the setter takes the library's own names only
    else:
        model.hf.set_experts_implementation(experts)


def write_onnx(model, inputs, path, exporter, opset, static):
    names = list(inputs)
    if exporter == "legacy":
        axes = {n: {0: "batch", 1: "decoder_len" if n.startswith("decoder") else "len"} for n in names}
        axes["logits"] = {0: "batch", 1: axes[names[-1]][1]}
        torch.onnx.export(model, tuple(inputs.values()), path, dynamo=False, opset_version=opset or 18,
                          input_names=names, output_names=["logits"], dynamic_axes=None if static else axes)
    elif exporter == "dynamo":
        rows, cols, decoder_cols = (torch.export.Dim(n, max=128) for n in ("batch", "len", "decoder_len"))
        shapes = {n: {0: rows, 1: decoder_cols if n.startswith("decoder") else cols} for n in names}
        program = torch.onnx.export(model, (), kwargs=dict(inputs), dynamo=True, opset_version=opset, verbose=False,
                                    input_names=names, output_names=["logits"],
                                    dynamic_shapes=None if static else shapes)
        program.save(path, external_data=False)
    else:
        import onnx_ir
        from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter
        if "decoder_input_ids" in inputs:
            inputs = dict(inputs, attention_mask=torch.ones_like(inputs["input_ids"]),
                          decoder_attention_mask=torch.ones_like(inputs["decoder_input_ids"]))
        done = OnnxExporter().export(model.hf, dict(inputs, use_cache=False),
                                     config=OnnxConfig(dynamic=not static, opset_version=opset))
        onnx_ir.save(done.program, path)


def tidy(path):
    """Stack traces of the exporting machine go, versions come."""
    proto = onnx.load(path)
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for key, text in (("torch", torch.__version__), ("transformers", transformers.__version__)):
        proto.metadata_props.add(key=key, value=text)
    onnx.save(proto, path)
    return proto


def check(stgcc, out):
    """What stgcc makes of the export: the recipe of `init`, and `run` against PyTorch."""
    path = {k: os.path.join(out, k) for k in ("model.onnx", "batch.npz", "recipe.yaml", "expected.npz", "got.npz")}
    for args in (["init", path["model.onnx"], "--data", path["batch.npz"], "-o", path["recipe.yaml"]],
                 ["run", path["model.onnx"], "--data", path["batch.npz"], "-o", path["got.npz"], "-q"]):
        done = subprocess.run([stgcc, *args], capture_output=True, text=True)
        if done.returncode:
            return f"stgcc {args[0]} exits {done.returncode}: {done.stderr.strip().splitlines()[0]}"
    with np.load(path["expected.npz"]) as want, np.load(path["got.npz"]) as got:
        want, got = want["out/logits"], next(got[k] for k in got.files if k.split("/")[-1] == "logits")
    os.remove(path["got.npz"])
    return f"stgcc run against PyTorch: {np.abs(got - want).max() / np.abs(want).max():.1e} of the largest logit"


def export(family, exporter, experts, out, a):
    model = build(family, a.mask or exporter == "legacy")   # without a mask its models take aten::diff, which legacy lacks
    set_experts(model, "eager")
    there = batch(model, 2, 12, seed=7) if a.static else batch(model, 3, 10, seed=7)
    with torch.no_grad():
        want = model(**there).numpy()
        set_experts(model, experts)
        os.makedirs(out, exist_ok=True)
        path = os.path.join(out, "model.onnx")
        write_onnx(model, batch(model, 2, 12, seed=3), path, exporter, a.opset, a.static)
    proto = tidy(path)
    arrays = {k: v.numpy() for k, v in there.items()}
    if exporter == "hf" and "decoder_input_ids" in arrays:
        arrays.update(attention_mask=np.ones_like(arrays["input_ids"]),
                      decoder_attention_mask=np.ones_like(arrays["decoder_input_ids"]))
    labels = arrays.get("decoder_input_ids", arrays["input_ids"]).copy()
    labels[:, :2] = -100
    np.savez_compressed(os.path.join(out, "batch.npz"), **arrays, labels=labels)
    np.savez_compressed(os.path.join(out, "expected.npz"), **{"out/logits": want})
    _, count, chosen, layers, _, _ = FAMILIES[family]
    with open(os.path.join(out, "about.json"), "w") as f:
        json.dump(dict(family=family, exporter=exporter, impl=experts, E=count, K=chosen, layers=layers,
                       torch=torch.__version__, transformers=transformers.__version__, nodes=len(proto.graph.node),
                       opset={o.domain or "ai.onnx": o.version for o in proto.opset_import}), f, indent=1)
    said = check(a.stgcc, out) if a.stgcc else "no stgcc named (--stgcc): no recipe, no comparison"
    print(f"{out}: {len(proto.graph.node)} nodes; {said}", flush=True)


def export_every_way(a):
    refused = 0
    for family in a.families:
        for exporter, experts in ways_of(build(family, False)):
            out = os.path.join(a.out, f"{family}-{exporter}-{experts}")
            try:
                export(family, exporter, experts, out, a)
            except Exception as e:                      # whatever an exporter throws is what is reported
                refused += 1
                shutil.rmtree(out, ignore_errors=True)
                os.makedirs(a.out, exist_ok=True)
                with open(out + ".log", "w") as f:
                    traceback.print_exc(file=f)
                print(f"{out}: not exported: {type(e).__name__}: {(str(e).strip() or '?').splitlines()[0]}", flush=True)
    print(f"{refused} not exported")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("families", nargs="*", metavar="FAMILY", help="of --list, or all")
    ap.add_argument("-o", "--out", help="the folder to write; for several exports the folder of their folders")
    ap.add_argument("--every-way", action="store_true", help="every exporter, every way to run the experts")
    ap.add_argument("--list", action="store_true", help="name the families")
    ap.add_argument("--exporter", choices=("legacy", "dynamo", "hf"), default="dynamo",
                    help="torch.onnx's tracing, torch.onnx's torch.export, or transformers' own exporter")
    ap.add_argument("--experts", choices=("eager", "batched_mm", "grouped_mm", "static_loop"), default="batched_mm",
                    help="how the experts run; eager is the class's own loop")
    ap.add_argument("--mask", action="store_true", help="give the model an attention mask, one row padded on the left (legacy always does)")
    ap.add_argument("--static", action="store_true", help="fixed batch and length")
    ap.add_argument("--opset", type=int)
    ap.add_argument("--stgcc", help="the stgcc that writes recipe.yaml and is compared with PyTorch")
    a = ap.parse_args()
    torch.set_num_threads(1)
    if a.list:
        for name, (kind, experts, chosen, layers, _, what) in FAMILIES.items():
            print(f"{name:17s} {kind:20s} {experts} experts, {chosen} chosen, {layers} MoE layers; {what}")
        return
    if a.families == ["all"]:
        a.families = list(FAMILIES)
    unknown = [f for f in a.families if f not in FAMILIES]
    if not a.out or not a.families or unknown:
        ap.error(f"no such family: {unknown[0]}" if unknown else "a family (--list names them) and -o are needed")
    if a.every_way:
        export_every_way(a)
    else:
        for family in a.families:
            out = a.out if len(a.families) == 1 else os.path.join(a.out, f"{family}-{a.exporter}-{a.experts}")
            export(family, a.exporter, a.experts, out, a)


if __name__ == "__main__":
    sys.exit(main())
