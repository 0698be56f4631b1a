#!/usr/bin/env python3
"""Exports models that look like layers of experts and are none, or have lost some: what stgcc must not raise.

    python models/look_alikes.py OUT            # OUT/NAME-EXPORTER/{model.onnx, batch.npz}

LEFT: nothing is chosen by a router for a token alone, or what is chosen is no expert; `inspect` finds no layer. WRONG: an expert
is missing, so the file computes something else than the model did; `inspect` says so and training is refused.
"""
import os
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

D, EXPERTS, TOKENS, WORDS = 16, 4, 24, 50


def mlp():
    return nn.Sequential(nn.Linear(D, 24), nn.ReLU(), nn.Linear(24, D))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, D), nn.Linear(D, 10)
        self.experts = nn.ModuleList(mlp() for _ in range(EXPERTS))
        self.gate = nn.Linear(D, EXPERTS)
        self.words = nn.Parameter(torch.randn(WORDS, D))
        self.own()

    def own(self):
        pass

    def forward(self, x):
        return self.head(self.mix(self.first(x)))

    def chosen(self, x):
        return torch.topk(torch.softmax(self.gate(x), -1), 2, -1)


class Ensemble(Model):
    def mix(self, x):
        return sum(e(x) for e in self.experts) / EXPERTS


class WeightedEnsemble(Model):
    """The same weights for all tokens."""

    def own(self):
        self.weights = nn.Parameter(torch.randn(EXPERTS))

    def mix(self, x):
        w = torch.softmax(self.weights, 0)
        return sum(w[i] * e(x) for i, e in enumerate(self.experts))


class SoftMoe(Model):
    """Every place of an expert is a mixture of all tokens."""

    def own(self):
        self.places = nn.Parameter(torch.randn(D, EXPERTS, 3))

    def mix(self, x):
        z = torch.einsum("td,dep->tep", x, self.places)
        into, back = torch.softmax(z, 0), torch.softmax(z.reshape(x.shape[0], -1), -1).reshape(z.shape)
        rows = torch.einsum("tep,td->epd", into, x)
        return torch.einsum("tep,epd->td", back, torch.stack([e(r) for e, r in zip(self.experts, rows)]))


class ExpertChoice(Model):
    """Experts choose tokens."""

    def mix(self, x):
        g, token = torch.topk(torch.softmax(self.gate(x), -1).t(), 8, -1)
        y = torch.zeros_like(x)
        for e in range(EXPERTS):
            y = y.index_add(0, token[e], self.experts[e](x[token[e]]) * g[e].unsqueeze(-1))
        return y


class SamplingHead(Model):
    """The best words of a language model's head, renormalised."""

    def forward(self, x):
        z = self.head(self.experts[0](self.first(x)))
        v, i = torch.topk(z, 3, -1)
        return torch.zeros_like(z).scatter(-1, i, torch.softmax(v, -1))


class SoftWords(Model):
    """The best words' embeddings, weighted."""

    def mix(self, x):
        v, i = torch.topk(x @ self.words.t(), 4, -1)
        return (self.words[i] * torch.softmax(v, -1).unsqueeze(-1)).sum(1)


class EmbeddingBag(Model):
    def mix(self, x):
        return self.words[torch.topk(x, 3, -1).indices].sum(1)


class Attention(Model):
    """Over rows of parameters."""

    def own(self):
        self.keys, self.values = nn.Parameter(torch.randn(EXPERTS, D)), nn.Parameter(torch.randn(EXPERTS, D))

    def mix(self, x):
        return torch.softmax(x @ self.keys.t(), -1) @ self.values


class MixedWeights(Model):
    """Matrices are mixed, not outputs."""

    def own(self):
        self.up, self.down = nn.Parameter(torch.randn(EXPERTS, D, 24)), nn.Parameter(torch.randn(EXPERTS, 24, D))

    def mix(self, x):
        g = torch.softmax(self.gate(x), -1)
        h = torch.bmm(x.unsqueeze(1), torch.einsum("te,edf->tdf", g, self.up))
        return torch.bmm(torch.relu(h), torch.einsum("te,edf->tdf", g, self.down)).squeeze(1)


class UnlikeExperts(Model):
    def own(self):
        self.experts[3] = nn.Sequential(*mlp(), nn.ReLU(), nn.Linear(D, D))

    def mix(self, x):
        w, i = self.chosen(x)
        return sum(f(x) * (w * (i == e)).sum(-1, keepdim=True) for e, f in enumerate(self.experts))


class MissingFromLists(Model):
    def mix(self, x):
        w, i = self.chosen(x)
        y = torch.zeros_like(x)
        for e in (0, 1, 3):
            token, slot = torch.where(i == e)
            y = y.index_add(0, token, self.experts[e](x[token]) * w[token, slot, None])
        return y


class MissingFromSum(Model):
    def mix(self, x):
        w, i = self.chosen(x)
        return sum(self.experts[e](x) * (w * (i == e)).sum(-1, keepdim=True) for e in (0, 2, 3))


LEFT = [Ensemble, WeightedEnsemble, SoftMoe, ExpertChoice, SamplingHead, SoftWords, EmbeddingBag, Attention, MixedWeights,
        UnlikeExperts]
WRONG = [MissingFromLists, MissingFromSum]


def export(kind, exporter, folder):
    torch.manual_seed(1)
    model, x = kind().eval(), torch.randn(TOKENS, 8)
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "model.onnx")
    common = dict(input_names=["x"], output_names=["logits"])
    with torch.no_grad():
        if exporter == "legacy":
            torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17, **common)
        else:
            torch.onnx.export(model, (x,), path, dynamo=True, verbose=False, external_data=False, **common)
    np.savez_compressed(os.path.join(folder, "batch.npz"), x=torch.randn(TOKENS, 8).numpy())


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for kind in LEFT + WRONG:
        for exporter in ("legacy", "dynamo"):
            name = "".join("-" + c.lower() if c.isupper() else c for c in kind.__name__).lstrip("-")
            export(kind, exporter, os.path.join(sys.argv[1], f"{name}-{exporter}"))


if __name__ == "__main__":
    main()
