#!/usr/bin/env python3
"""MoE layers whose experts are under a condition, as TorchScript keeps it: an If around every expert.

    python models/export_scripted.py --out tests/scripted

any-mask, any-sum, any-rows: computed only where a token chose the expert, which changes nothing; enough: only where more than three
did, which is another function and no layer of experts. Weights are fresh, sizes small.
"""
import argparse
import os
import warnings

import numpy as np
import torch
import torch.nn as nn


class Expert(nn.Module):
    def __init__(self, d, f):
        super().__init__()
        self.up, self.down = nn.Linear(d, f), nn.Linear(f, d)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Layer(nn.Module):
    def __init__(self, d, f, experts, k: int):
        super().__init__()
        self.router = nn.Linear(d, experts, bias=False)
        self.experts = nn.ModuleList([Expert(d, f) for _ in range(experts)])
        self.k = k

    def choose(self, x):
        gates, chosen = torch.topk(torch.softmax(self.router(x), -1), self.k, -1)
        return gates / gates.sum(-1, keepdim=True), chosen


class AnyMask(Layer):
    def forward(self, x):
        gates, chosen = self.choose(x)
        y = torch.zeros_like(x)
        e = 0
        for expert in self.experts:
            mask = chosen == e
            if bool(mask.any()):
                y = y + expert(x) * (gates * mask.to(gates.dtype)).sum(-1, keepdim=True)
            e += 1
        return y


class AnySum(Layer):
    def forward(self, x):
        gates, chosen = self.choose(x)
        y = torch.zeros_like(x)
        e = 0
        for expert in self.experts:
            mask = chosen == e
            if mask.sum().item() != 0:
                y = y + expert(x) * (gates * mask.to(gates.dtype)).sum(-1, keepdim=True)
            e += 1
        return y


class AnyRows(Layer):
    def forward(self, x):
        gates, chosen = self.choose(x)
        y = torch.zeros_like(x)
        e = 0
        for expert in self.experts:
            rows, slot = torch.where(chosen == e)
            if rows.numel() > 0:
                y = y.index_add(0, rows, expert(x[rows]) * gates[rows, slot].unsqueeze(-1))
            e += 1
        return y


class Enough(Layer):
    def forward(self, x):
        gates, chosen = self.choose(x)
        y = torch.zeros_like(x)
        e = 0
        for expert in self.experts:
            mask = chosen == e
            if int(mask.sum()) > 3:
                y = y + expert(x) * (gates * mask.to(gates.dtype)).sum(-1, keepdim=True)
            e += 1
        return y


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.embed, self.moe, self.head = nn.Embedding(32, 16), layer, nn.Linear(16, 32)

    def forward(self, ids):
        x = self.embed(ids)
        return self.head(x + self.moe(x.reshape(-1, x.size(2))).reshape(x.size(0), x.size(1), x.size(2)))


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument("--out", default=".")
    a = ap.parse_args()
    warnings.filterwarnings("ignore")
    os.makedirs(a.out, exist_ok=True)
    for name, kind in (("any-mask", AnyMask), ("any-sum", AnySum), ("any-rows", AnyRows), ("enough", Enough)):
        torch.manual_seed(1)
        ids = torch.randint(0, 32, (2, 6))
        net = torch.jit.script(Model(kind(16, 24, 4, 2)).eval())
        torch.onnx.export(net, (ids,), os.path.join(a.out, f"{name}.onnx"), dynamo=False, opset_version=17, do_constant_folding=False,
                          input_names=["input_ids"], output_names=["logits"])
    np.savez(os.path.join(a.out, "batch.npz"), input_ids=ids.numpy(), labels=ids.numpy())


if __name__ == "__main__":
    main()
