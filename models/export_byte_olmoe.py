#!/usr/bin/env python3
"""Exports the bundled model: OLMoE (transformers' own class) with fresh weights and a byte vocabulary.

    pip install torch==2.13.0 transformers onnx onnxscript
    python models/export_byte_olmoe.py models/byte-olmoe.onnx

Two layers, width 128, four heads, eight experts of inner width 192, two chosen per token; the experts run as transformers'
`batched_mm` (form D), batch and sequence are dynamic. Weights come from a fixed seed, so the file is reproducible with the same
versions of torch, transformers and onnxscript (written into the model's metadata).
"""
import argparse
import os

os.environ["HF_HUB_OFFLINE"] = "1"
import onnx
import torch
import transformers
from transformers import OlmoeConfig, OlmoeForCausalLM


class Logits(torch.nn.Module):
    """input_ids [B,S] -> logits [B,S,256]: what a training graph needs of a language model."""

    def __init__(self, hf):
        super().__init__()
        self.hf = hf

    def forward(self, input_ids):
        return self.hf(input_ids=input_ids, use_cache=False).logits


def build(seed):
    torch.manual_seed(seed)
    config = OlmoeConfig(vocab_size=256, hidden_size=128, intermediate_size=192, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=4, num_experts=8, num_experts_per_tok=2,
                         norm_topk_prob=True, max_position_embeddings=1024, tie_word_embeddings=False,
                         pad_token_id=0, bos_token_id=None, eos_token_id=None, attn_implementation="eager")
    config._experts_implementation = "batched_mm"
    model = Logits(OlmoeForCausalLM(config).eval())
    with torch.no_grad():                   # the exporter merges equal initializers: norms that are all 1 would become one
        for p in model.parameters():
            if p.ndim == 1:
                p.normal_(1.0, 0.02)
    return model


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("out")
    ap.add_argument("--seed", type=int, default=1)
    a = ap.parse_args()
    model = build(a.seed)
    ids = torch.randint(1, 256, (2, 16))
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", min=2, max=1024)}
    program = torch.onnx.export(model, (ids,), dynamo=True, input_names=["input_ids"], output_names=["logits"],
                                dynamic_shapes=({**dims},), external_data=False)
    program.save(a.out)
    proto = onnx.load(a.out)
    for node in proto.graph.node:           # stack traces of the exporting machine: over half of a small file
        del node.metadata_props[:]
    for value in proto.graph.value_info:
        del value.metadata_props[:]
    for key, text in (("torch", torch.__version__), ("transformers", transformers.__version__)):
        proto.metadata_props.add(key=key, value=text)
    onnx.save(proto, a.out)
    print(f"{a.out}: {sum(p.numel() for p in model.parameters()):,} parameters, {os.path.getsize(a.out):,} bytes, "
          f"{len(proto.graph.node)} nodes")


if __name__ == "__main__":
    main()
