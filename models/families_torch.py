"""Mixture-of-Experts layers as people write them in PyTorch, without a library: small models, each with a plain reference.

    f = build("where-add")                          # {"model", "inputs", "labels", "routers", "experts", …}
    export(f["model"], f["inputs"], "m.onnx", "dynamo")

A layer has a router (ROUTERS: logits -> chosen experts and weights) and a way to run its experts (WAYS: the spelling that is
exported). Whatever the way, set_experts(model, "eager") makes it run one expert after the other on the rows that chose it: that is
the reference whose gradients per token are known. A way is named after what it is known from.

FAMILIES, build, set_experts and export are the interface of a case maker.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

SIZES = {
    "tiny": dict(H=32, I=24, V=96, S=12, B=2, layers=2),
    "medium": dict(H=128, I=96, V=512, S=48, B=2, layers=3),
    "small": dict(H=16, I=12, V=32, S=10, B=2, layers=1),       # for tests that are kept
    "one": dict(H=16, I=16, V=64, S=1, B=8, layers=1),          # sequences of one token
    "narrow": dict(H=24, I=24, V=64, S=20, B=1, layers=3),      # square matrices
}


# ---- routers: logits [T, E] -> (index [T, K], weight [T, K]), or gates [T, E] where the number chosen varies ----

def softmax_topk(m, z):
    w, i = torch.topk(torch.softmax(z, -1), m.K)
    return i, w


def softmax_topk_renorm(m, z):
    w, i = torch.topk(torch.softmax(z, -1), m.K)
    return i, w / w.sum(-1, keepdim=True)


def topk_softmax(m, z):
    w, i = torch.topk(z, m.K)
    return i, torch.softmax(w, -1)


def sigmoid_topk(m, z):
    s = torch.sigmoid(z)
    w, i = torch.topk(s + m.choice_bias, m.K)
    w = s.gather(-1, i)
    return i, 2.5 * w / (w.sum(-1, keepdim=True) + 1e-20)


def minus_inf_softmax(m, z):                                    # makeMoE
    w, i = torch.topk(z, m.K)
    g = torch.softmax(torch.full_like(z, float("-inf")).scatter(-1, i, w), -1)
    return i, g.gather(-1, i)


def groups(m, z):                                               # DeepSeek-V2: the best groups first, then experts of those
    p = torch.softmax(z, -1)
    t, n = z.shape[0], m.groups
    best = p.view(t, n, -1).max(-1).values.topk(m.top_groups, dim=-1).indices
    mask = torch.zeros(t, n).to(p).scatter(1, best, 1.0).unsqueeze(-1).expand(t, n, m.E // n).reshape(t, -1)
    w, i = torch.topk(p.masked_fill(~mask.bool(), 0.0), m.K)
    return i, w * 1.5


def groups_sigmoid(m, z):                                       # DeepSeek-V3
    s = torch.sigmoid(z)
    choice = s + m.choice_bias
    t, n = z.shape[0], m.groups
    best = choice.view(t, n, -1).topk(2, dim=-1).values.sum(-1).topk(m.top_groups, dim=-1).indices
    mask = torch.zeros(t, n).to(s).scatter(1, best, 1.0).unsqueeze(-1).expand(t, n, m.E // n).reshape(t, -1)
    i = choice.masked_fill(~mask.bool(), float("-inf")).topk(m.K, dim=-1).indices
    w = s.gather(1, i)
    return i, w / (w.sum(-1, keepdim=True) + 1e-20)


def argmaxes(m, z):                                             # GShard: the best, then the best of the others
    p = torch.softmax(z, -1)
    i1 = p.argmax(-1)
    i2 = p.masked_fill(F.one_hot(i1, m.E).bool(), float("-inf")).argmax(-1)
    i = torch.stack([i1, i2], -1)
    w = p.gather(-1, i)
    return i, w / w.sum(-1, keepdim=True).clamp(min=1e-9)


def best_one(m, z):                                             # Switch
    w, i = torch.softmax(z, -1).max(-1)
    return i.unsqueeze(-1), w.unsqueeze(-1)


def sorted_first(m, z):
    w, i = torch.softmax(z, -1).sort(-1, descending=True)
    return i[:, :m.K], w[:, :m.K]


def threshold(m, z):                                            # as many as pass
    s = torch.sigmoid(z)
    return s * (s > 0.5)


def top_p(m, z):                                                # the fewest whose probabilities reach p
    p, i = torch.softmax(z, -1).sort(-1, descending=True)
    keep = (p.cumsum(-1) - p) < 0.6
    return torch.zeros_like(z).scatter(-1, i, p * keep)


def relu_router(m, z):                                          # ReMoE
    return torch.relu(z)


def all_softmax(m, z):
    return torch.softmax(z, -1)


# ---- ways to run the experts ----

def pairs_of(m, index, weight, e):
    token, slot = torch.where(index == e)
    return token, weight[token, slot, None]


def dense_gates(m, index, weight):
    return torch.zeros(index.shape[0], m.E).to(weight).scatter(-1, index, weight)


def reference(m, x, index, weight):
    y = torch.zeros_like(x)
    for e in range(m.E):
        if index is None:
            token = torch.where(weight[:, e] != 0)[0]
            w = weight[token, e, None]
        else:
            token, w = pairs_of(m, index, weight, e)
        y = y.index_add(0, token, w * m.expert(x[token], e))
    return y


def where_add(m, x, index, weight):                             # Mistral's reference, LitGPT: y[token] += …
    y = torch.zeros_like(x)
    for e in range(m.E):
        token, w = pairs_of(m, index, weight, e)
        y[token] += w * m.expert(x[token], e)
    return y


def where_add_accumulate(m, x, index, weight):
    y = torch.zeros_like(x)
    for e in range(m.E):
        token, w = pairs_of(m, index, weight, e)
        y = y.index_put((token,), w * m.expert(x[token], e), accumulate=True)
    return y


def mask_add(m, x, index, weight):                              # makeMoE: boolean masks
    y = torch.zeros_like(x)
    gates = dense_gates(m, index, weight)
    for e in range(m.E):
        mask = (index == e).any(-1)
        y[mask] += m.expert(x[mask], e) * gates[mask, e].unsqueeze(1)
    return y


def select_add(m, x, index, weight):                            # index_select, index_add over a flat list of pairs
    y = torch.zeros_like(x)
    flat = index.reshape(-1)
    for e in range(m.E):
        pair = torch.nonzero(flat == e).squeeze(-1)
        token = torch.div(pair, m.K, rounding_mode="floor")
        y = y.index_add(0, token, m.expert(x.index_select(0, token), e) * weight.reshape(-1)[pair].unsqueeze(-1))
    return y


def gates_nonzero(m, x, index, weight):                         # the tokens with a gate that is not zero
    gates = weight if index is None else dense_gates(m, index, weight)
    y = torch.zeros_like(x)
    for e in range(m.E):
        token = torch.nonzero(gates[:, e]).squeeze(-1)
        y = y.index_add(0, token, m.expert(x[token], e) * gates[token, e].unsqueeze(-1))
    return y


def one_hot_pairs(m, x, index, weight):                         # pairs first: x repeated K times, then rows of the pairs
    xr = x.repeat_interleave(m.K, 0)
    y = torch.zeros_like(xr)
    flat = index.view(-1)
    for e in range(m.E):
        rows = torch.where(flat == e)[0]
        y = y.index_put((rows,), m.expert(xr[rows], e))
    return (y.view(-1, m.K, x.shape[-1]) * weight.unsqueeze(-1)).sum(1)


def overwrite(m, x, index, weight):                             # labml's Switch: each token has one expert, rows overwritten
    y = torch.zeros_like(x)
    for e in range(m.E):
        token = torch.eq(index[:, 0], e).nonzero(as_tuple=True)[0]
        y[token, :] = m.expert(x[token, :], e)
    return y * weight


def masked_sum(m, x, index, weight):                            # all experts on all tokens
    y = torch.zeros_like(x)
    for e in range(m.E):
        y = y + m.expert(x, e) * (weight * (index == e)).sum(-1, keepdim=True)
    return y


def gate_columns(m, x, index, weight):
    gates = weight if index is None else dense_gates(m, index, weight)
    return sum(gates[:, e:e + 1] * m.expert(x, e) for e in range(m.E))


def stack_gather(m, x, index, weight):                          # all outputs stacked, the chosen gathered
    out = torch.stack([m.expert(x, e) for e in range(m.E)], 1)
    out = out.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
    return (out * weight.unsqueeze(-1)).sum(1)


def stack_weigh(m, x, index, weight):
    gates = weight if index is None else dense_gates(m, index, weight)
    return (torch.stack([m.expert(x, e) for e in range(m.E)], 1) * gates.unsqueeze(-1)).sum(1)


def stack_last_weigh(m, x, index, weight):
    gates = weight if index is None else dense_gates(m, index, weight)
    return (torch.stack([m.expert(x, e) for e in range(m.E)], -1) * gates.unsqueeze(1)).sum(-1)


def stack_bmm(m, x, index, weight):
    gates = weight if index is None else dense_gates(m, index, weight)
    return torch.bmm(gates.unsqueeze(1), torch.stack([m.expert(x, e) for e in range(m.E)], 1)).squeeze(1)


def stack_einsum(m, x, index, weight):
    gates = weight if index is None else dense_gates(m, index, weight)
    return torch.einsum("te,eth->th", gates, torch.stack([m.expert(x, e) for e in range(m.E)], 0))


def einsum_all(m, x, index, weight):                            # stacked weights, no copy of x
    gates = weight if index is None else dense_gates(m, index, weight)
    h = torch.einsum("td,edf->tef", x, m.up) + m.up_bias
    h = torch.einsum("tef,efd->ted", m.act(h), m.down) + m.down_bias
    return torch.einsum("ted,te->td", h, gates)


def einsum_experts_first(m, x, index, weight):
    gates = weight if index is None else dense_gates(m, index, weight)
    h = m.act(torch.einsum("td,edf->etf", x, m.up) + m.up_bias[:, None])
    return torch.einsum("etf,efd,te->td", h, m.down, gates) + gates @ m.down_bias


def matmul_broadcast(m, x, index, weight):
    gates = weight if index is None else dense_gates(m, index, weight)
    h = m.act(torch.matmul(x.unsqueeze(0), m.up) + m.up_bias.unsqueeze(1))
    h = torch.baddbmm(m.down_bias.unsqueeze(1), h, m.down)
    return torch.sum(h * gates.t().unsqueeze(-1), dim=0)


def einsum_chosen(m, x, index, weight):                         # gpt-fast: weights of the chosen gathered
    h = m.act(torch.einsum("td,tkdf->tkf", x, m.up[index]) + m.up_bias[index])
    h = torch.einsum("tkf,tkfd->tkd", h, m.down[index]) + m.down_bias[index]
    return torch.einsum("tkd,tk->td", h, weight)


def loop_over_slots(m, x, index, weight):                       # for each of the K choices, that expert's matrices
    y = torch.zeros_like(x)
    for k in range(m.K):
        i = index[:, k]
        h = m.act(torch.bmm(x.unsqueeze(1), m.up[i]).squeeze(1) + m.up_bias[i])
        y = y + (torch.bmm(h.unsqueeze(1), m.down[i]).squeeze(1) + m.down_bias[i]) * weight[:, k:k + 1]
    return y


def one_wide_layer(m, x, index, weight):                        # MoEfication: one wide FFN, blocks of it switched by the gate
    gates = weight if index is None else dense_gates(m, index, weight)
    h = m.act(F.linear(x, m.up, m.up_bias))
    h = (h.view(x.shape[0], m.E, -1) * gates.unsqueeze(-1)).reshape(x.shape[0], -1)
    return h @ m.down + gates @ m.down_bias


def sorted_slices(m, x, index, weight):                         # MegaBlocks without its kernels: rows sorted, one slice per expert
    flat = index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    ends = F.one_hot(flat, m.E).sum(0).cumsum(0)
    xs = x[torch.div(order, m.K, rounding_mode="floor")]
    parts, begin = [], torch.zeros((), dtype=torch.int64)
    for e in range(m.E):
        parts.append(m.expert(xs[begin:ends[e]], e))
        begin = ends[e]
    out = torch.cat(parts) * weight.reshape(-1)[order].unsqueeze(-1)
    return torch.zeros_like(x).index_add(0, torch.div(order, m.K, rounding_mode="floor"), out)


def places(m, index, capacity, order=None):
    """Place of each pair in its expert's queue, first choices first; [K, T], and whether it got one."""
    hot = F.one_hot(index.t().reshape(-1), m.E)                 # [K*T, E]
    place = ((hot.cumsum(0) - 1) * hot).sum(-1).view(m.K, -1)
    return place, place < capacity


def room(m, tokens):
    return max(int(math.ceil(m.K * tokens * m.capacity / m.E)), 4)


def kept_weights(m, x, index, weight):
    c = room(m, x.shape[0])
    place, kept = places(m, index, c)
    return c, place, weight * kept.t()


def capacity_reference(m, x, index, weight):
    _, _, w = kept_weights(m, x, index, weight)
    y = torch.zeros_like(x)
    for e in range(m.E):
        token, slot = torch.where((index == e) & (w != 0))
        y = y.index_add(0, token, w[token, slot, None] * m.expert(x[token], e))
    return y


def stack_of(m, rows):
    """Every expert on its own rows, [E, …, H]."""
    return torch.stack([m.expert(rows[e], e) for e in range(m.E)])


def nano_moe(m, x, index, weight):                              # nanoMoE: places as one matrix, batched products
    c, place, w = kept_weights(m, x, index, weight)
    slot = F.one_hot(torch.clamp(place, max=c), c + 1)[..., :c].to(x)                 # [K, T, C]
    combine = torch.einsum("kt,kte,ktc->tec", w.t(), F.one_hot(index.t(), m.E).to(x), slot)
    mask = combine.bool().to(x)
    rows = mask.permute(1, 2, 0) @ x                                                  # [E, C, H]
    out = stack_of(m, rows)
    return combine.reshape(x.shape[0], -1) @ out.reshape(-1, x.shape[-1])


def grouped_einsum(m, x, index, weight):                        # V-MoE, GShard, lucidrains: a queue for each sequence
    b = m.sequences
    s = x.shape[0] // b
    c = max(int(math.ceil(m.K * s * m.capacity / m.E)), 2)
    hot = F.one_hot(index.view(b, s, m.K).transpose(1, 2).reshape(b, -1, 1).squeeze(-1), m.E)   # [B, K*S, E]
    place = ((hot.cumsum(1) - 1) * hot).sum(-1).view(b, m.K, s)
    kept = (place < c).to(x)
    w = weight.view(b, s, m.K).transpose(1, 2) * kept
    slot = F.one_hot(torch.clamp(place, max=c), c + 1)[..., :c].to(x)
    combine = torch.einsum("bks,bkse,bksc->bsec", w, hot.view(b, m.K, s, m.E).to(x), slot)
    rows = torch.einsum("bsec,bsh->ebch", combine.bool().to(x), x.view(b, s, -1))
    out = stack_of(m, rows)
    return torch.einsum("bsec,ebch->bsh", combine, out).reshape(x.shape)


def grouped_reference(m, x, index, weight):
    b = m.sequences
    s = x.shape[0] // b
    c = max(int(math.ceil(m.K * s * m.capacity / m.E)), 2)
    hot = F.one_hot(index.view(b, s, m.K).transpose(1, 2).reshape(b, -1), m.E)
    place = ((hot.cumsum(1) - 1) * hot).sum(-1).view(b, m.K, s)
    w = weight * (place < c).transpose(1, 2).reshape(-1, m.K)
    y = torch.zeros_like(x)
    for e in range(m.E):
        token, slot = torch.where((index == e) & (w != 0))
        y = y.index_add(0, token, w[token, slot, None] * m.expert(x[token], e))
    return y


def scattered_places(m, x, index, weight):                      # DeepSpeed today: no einsum, rows scattered and gathered
    c, place, w = kept_weights(m, x, index, weight)
    t, n = x.shape[0], m.E * c
    slots = torch.where(place < c, index.t() * c + place, n)                          # [K, T]
    source = torch.full((n + 1,), t, dtype=torch.int64).scatter(0, slots.reshape(-1), torch.arange(t).repeat(m.K))
    padded = torch.cat([x, x.new_zeros(1, x.shape[-1])])
    rows = padded.index_select(0, source[:-1]).view(m.E, c, -1)
    out = stack_of(m, rows).reshape(n, -1)
    out = torch.cat([out, out.new_zeros(1, out.shape[-1])])
    return (out.index_select(0, slots.reshape(-1)).view(m.K, t, -1) * w.t().unsqueeze(-1)).sum(0)


def sliced_queue(m, x, index, weight):                          # labml's Switch with capacity: the first C of each list
    c = room(m, x.shape[0])
    y = torch.zeros_like(x)
    for e in range(m.E):
        token = torch.where(index[:, 0] == e)[0][:c]
        y = y.index_add(0, token, m.expert(x[token], e) * weight[token])
    return y


def capacity_lists(m, x, index, weight):                        # transformers' Switch: lists of what the drop left
    _, _, w = kept_weights(m, x, index, weight)
    kept = w != 0
    y = torch.zeros_like(x)
    for e in range(m.E):
        token, slot = torch.where((index == e) & kept)
        y = y.index_add(0, token, m.expert(x[token], e) * weight[token, slot, None])
    return y


def capacity_masks(m, x, index, weight):                        # all experts, masks of what the drop left
    _, _, w = kept_weights(m, x, index, weight)
    return sum(m.expert(x, e) * (w * (index == e)).sum(-1, keepdim=True) for e in range(m.E))


# ---- experts ----

class Mlp(nn.Module):
    """One expert: gated or not, with or without biases, perhaps a norm or a third layer."""

    def __init__(self, d, f, kind):
        super().__init__()
        bias = kind != "swiglu"
        self.kind = kind
        self.w1 = nn.Linear(d, f, bias=bias)
        self.w2 = nn.Linear(f, d, bias=bias)
        if kind in ("swiglu", "geglu"):
            self.w3 = nn.Linear(d, f, bias=bias)
        if kind == "deep":
            self.mid = nn.Linear(f, f)
        if kind == "norm":
            self.norm = nn.LayerNorm(d)
        if kind == "rms":
            self.scale = nn.Parameter(torch.ones(f))

    def forward(self, x):
        if self.kind == "swiglu":
            return self.w2(F.silu(self.w1(x)) * self.w3(x))
        if self.kind == "geglu":
            return self.w2(F.gelu(self.w1(x)) * self.w3(x))
        if self.kind == "deep":
            return self.w2(torch.tanh(self.mid(F.leaky_relu(self.w1(x)))))
        if self.kind == "norm":
            return self.w2(F.gelu(self.w1(self.norm(x)), approximate="tanh"))
        if self.kind == "rms":
            h = F.relu(self.w1(x)).square()
            return self.w2(h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale)
        return self.w2(F.relu(self.w1(x)))


class Moe(nn.Module):
    def __init__(self, z, router, way, experts=4, chosen=2, ffn="mlp", shared=None, capacity=1.0, sequences=0, deep_router=False,
                 router_bias=False):
        super().__init__()
        d, f = z["H"], z["I"]
        self.E, self.K, self.way, self.router, self.shared_kind = experts, chosen, way, router, shared
        self.capacity, self.groups, self.top_groups, self.sequences = capacity, 4, 2, sequences or z["B"]
        self.eager = False
        self.hidden = nn.Linear(d, d) if deep_router else None
        self.gate = nn.Linear(d, experts, bias=router_bias)
        self.register_buffer("choice_bias", torch.zeros(experts))
        self.stacked = way in STACKED
        if self.stacked:
            self.up, self.up_bias = nn.Parameter(torch.empty(experts, d, f)), nn.Parameter(torch.empty(experts, f))
            self.down, self.down_bias = nn.Parameter(torch.empty(experts, f, d)), nn.Parameter(torch.empty(experts, d))
            if way is one_wide_layer:
                self.up, self.up_bias = nn.Parameter(torch.empty(experts * f, d)), nn.Parameter(torch.empty(experts * f))
                self.down = nn.Parameter(torch.empty(experts * f, d))
            self.act = F.gelu
        else:
            self.experts = nn.ModuleList(Mlp(d, f, ffn) for _ in range(experts))
        if shared:
            self.shared = Mlp(d, f + 8, "swiglu")
            self.shared_gate = nn.Linear(d, 2 if shared == "residual" else 1, bias=False)

    def expert(self, x, e):
        if self.way is one_wide_layer:
            f = self.up.shape[0] // self.E
            own = slice(e * f, (e + 1) * f)
            return self.act(F.linear(x, self.up[own], self.up_bias[own])) @ self.down[own] + self.down_bias[e]
        if self.stacked:
            return self.act(x @ self.up[e] + self.up_bias[e]) @ self.down[e] + self.down_bias[e]
        return self.experts[e](x)

    def forward(self, x):
        shape, flat = x.shape, x.reshape(-1, x.shape[-1])
        z = self.gate(torch.tanh(self.hidden(flat)) if self.hidden is not None else flat)
        chosen = self.router(self, z)
        index, weight = chosen if isinstance(chosen, tuple) else (None, chosen)
        way = REFERENCES.get(self.way, reference) if self.eager else self.way
        y = way(self, flat, index, weight)
        if self.shared_kind == "plain":
            y = y + self.shared(flat)
        elif self.shared_kind == "gated":
            y = y + torch.sigmoid(self.shared_gate(flat)) * self.shared(flat)
        elif self.shared_kind == "residual":                    # DeepSpeed's residual MoE
            c = torch.softmax(self.shared_gate(flat), -1)
            y = y * c[:, 0:1] + self.shared(flat) * c[:, 1:]
        return y.reshape(shape)


STACKED = {einsum_all, einsum_experts_first, matmul_broadcast, einsum_chosen, loop_over_slots, one_wide_layer}
REFERENCES = {nano_moe: capacity_reference, scattered_places: capacity_reference, capacity_lists: capacity_reference,
              capacity_masks: capacity_reference, grouped_einsum: grouped_reference}


# ---- models around the layers ----

class Attention(nn.Module):
    def __init__(self, d, heads=4):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x, causal):
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).reshape(b, s, d))


class Block(nn.Module):
    def __init__(self, z, make):
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(z["H"]), nn.LayerNorm(z["H"])
        self.attention, self.moe = Attention(z["H"]), make(z)

    def forward(self, x, causal):
        x = x + self.attention(self.n1(x), causal)
        return x + self.moe(self.n2(x))


class Language(nn.Module):
    def __init__(self, z, make):
        super().__init__()
        self.embed, self.position = nn.Embedding(z["V"], z["H"]), nn.Embedding(64, z["H"])
        self.blocks = nn.ModuleList(Block(z, make) for _ in range(z["layers"]))
        self.norm, self.head = nn.LayerNorm(z["H"]), nn.Linear(z["H"], z["V"], bias=False)

    def forward(self, input_ids):
        x = self.embed(input_ids) + self.position.weight[:input_ids.shape[1]]
        for b in self.blocks:
            x = b(x, True)
        return self.head(self.norm(x))


class Vision(nn.Module):
    """Patches of an image, as V-MoE has them."""

    def __init__(self, z, make):
        super().__init__()
        self.patch = nn.Conv2d(3, z["H"], 4, 4)
        self.position = nn.Parameter(torch.empty(1, 16, z["H"]))
        self.blocks = nn.ModuleList(Block(z, make) for _ in range(z["layers"]))
        self.norm, self.head = nn.LayerNorm(z["H"]), nn.Linear(z["H"], 10)

    def forward(self, pixel_values):
        x = self.patch(pixel_values).flatten(2).transpose(1, 2) + self.position
        for b in self.blocks:
            x = b(x, False)
        return self.head(self.norm(x).mean(1))


class Features(nn.Module):
    """Rows of a table: each sample is a token."""

    def __init__(self, z, make):
        super().__init__()
        self.first = nn.Linear(13, z["H"])
        self.layers = nn.ModuleList(make(z) for _ in range(z["layers"]))
        self.head = nn.Linear(z["H"], 5)

    def forward(self, features):
        x = torch.tanh(self.first(features))
        for m in self.layers:
            x = x + m(x)
        return self.head(x)


class Pixels(nn.Module):
    """Experts of 1x1 convolutions chosen for each place of a feature map."""

    def __init__(self, z, make):
        super().__init__()
        self.first = nn.Conv2d(3, z["H"], 3, 2, 1)
        self.layers = nn.ModuleList(make(z) for _ in range(z["layers"]))
        self.head = nn.Linear(z["H"], 10)

    def forward(self, pixel_values):
        x = F.relu(self.first(pixel_values))
        for m in self.layers:
            y = m(x.permute(0, 2, 3, 1))
            x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


def family(router, way, E=4, K=2, model=Language, score="softmax", **more):
    return dict(router=router, way=way, E=E, K=K, model=model, score=score, more=more)


FAMILIES = {
    # lists of tokens for each expert
    "where-add": family(softmax_topk_renorm, where_add, 8, 2, ffn="swiglu"),
    "where-add-one": family(best_one, where_add, 4, 1, ffn="geglu"),
    "where-accumulate": family(topk_softmax, where_add_accumulate, 6, 3, ffn="swiglu", shared="plain"),
    "mask-add": family(minus_inf_softmax, mask_add, 8, 2),
    "select-add": family(groups, select_add, 8, 3, ffn="swiglu", shared="plain"),
    "nonzero-gates": family(minus_inf_softmax, gates_nonzero, 5, 2),
    "one-hot-pairs": family(topk_softmax, one_hot_pairs, 4, 2, ffn="geglu"),
    "overwrite": family(best_one, overwrite, 4, 1),
    "argmaxes-where": family(argmaxes, where_add_accumulate, 4, 2, ffn="deep"),
    "sorted-router": family(sorted_first, where_add_accumulate, 8, 3),
    "sigmoid-groups": family(groups_sigmoid, where_add, 16, 4, score="sigmoid", ffn="swiglu", shared="plain"),
    # all experts on all tokens
    "masked-sum": family(sigmoid_topk, masked_sum, 6, 2, score="sigmoid", ffn="deep"),
    "gate-columns": family(minus_inf_softmax, gate_columns, 4, 2, ffn="swiglu", shared="gated"),
    "stack-gather": family(topk_softmax, stack_gather, 4, 2),
    "stack-weigh": family(softmax_topk, stack_weigh, 4, 2, ffn="swiglu"),
    "stack-last": family(softmax_topk, stack_last_weigh, 4, 2),
    "stack-bmm": family(softmax_topk_renorm, stack_bmm, 4, 2, ffn="geglu"),
    "stack-einsum": family(softmax_topk_renorm, stack_einsum, 4, 2),
    # stacked weights
    "einsum-all": family(softmax_topk_renorm, einsum_all, 8, 2),
    "einsum-first": family(topk_softmax, einsum_experts_first, 4, 2),
    "matmul-broadcast": family(sigmoid_topk, matmul_broadcast, 4, 2, score="sigmoid"),
    "einsum-chosen": family(softmax_topk_renorm, einsum_chosen, 8, 2),
    "slot-loop": family(softmax_topk_renorm, loop_over_slots, 8, 3),
    "wide-layer": family(softmax_topk_renorm, one_wide_layer, 4, 2),
    # rows sorted by expert
    "sorted-slices": family(softmax_topk_renorm, sorted_slices, 4, 2, ffn="swiglu"),
    # as many as pass
    "threshold": family(threshold, gate_columns, 4, 0, score="sigmoid"),
    "threshold-lists": family(threshold, gates_nonzero, 4, 0, score="sigmoid", ffn="swiglu"),
    "threshold-einsum": family(threshold, einsum_all, 4, 0, score="sigmoid"),
    "top-p": family(top_p, gate_columns, 6, 0),
    "top-p-lists": family(top_p, gates_nonzero, 6, 0),
    "relu-router": family(relu_router, stack_weigh, 4, 0),
    "all-softmax": family(all_softmax, gate_columns, 4, 4),
    "all-softmax-einsum": family(all_softmax, einsum_all, 4, 4),
    # queues of limited length
    "nano-moe": family(softmax_topk_renorm, nano_moe, 4, 2),
    "nano-moe-drop": family(softmax_topk, nano_moe, 4, 2, capacity=0.6, ffn="swiglu"),
    "grouped-einsum": family(softmax_topk_renorm, grouped_einsum, 4, 2, capacity=1.25),
    "scattered-places": family(softmax_topk_renorm, scattered_places, 4, 2, capacity=0.8, ffn="geglu"),
    "capacity-lists": family(best_one, capacity_lists, 3, 1, capacity=0.8, ffn="swiglu"),
    "capacity-lists-two": family(softmax_topk_renorm, capacity_lists, 4, 2, capacity=0.7, ffn="swiglu"),
    "capacity-masks": family(softmax_topk_renorm, capacity_masks, 4, 2, capacity=0.7),
    # other shapes of router and layer
    "deep-router": family(softmax_topk_renorm, where_add_accumulate, 4, 2, deep_router=True, router_bias=True),
    "residual": family(best_one, where_add_accumulate, 4, 1, shared="residual"),
    "everyone": family(topk_softmax, where_add_accumulate, 2, 2),
    "many": family(softmax_topk, masked_sum, 16, 4, ffn="swiglu"),
    "vision": family(softmax_topk_renorm, where_add, 4, 2, Vision, ffn="geglu"),
    "vision-grouped": family(softmax_topk_renorm, grouped_einsum, 4, 2, Vision, capacity=1.5, ffn="swiglu"),
    "features": family(softmax_topk_renorm, stack_gather, 4, 2, Features),
    "features-lists": family(topk_softmax, where_add_accumulate, 5, 2, Features, ffn="deep"),
    "pixels": family(softmax_topk_renorm, gate_columns, 4, 2, Pixels),
    "pixels-lists": family(topk_softmax, where_add, 4, 2, Pixels, ffn="geglu"),
}


def randomise(model, seed):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n.endswith("choice_bias"))]:
            noise = torch.randn(p.shape, generator=g)
            if "bias" in name:
                p.copy_(0.1 * noise)
            elif p.dim() == 1:
                p.copy_(1 + 0.1 * noise)
            else:
                fan = p[0].numel() if p.dim() in (2, 4) else p.shape[-2]
                p.copy_(noise * ((1.0 if "embed" in name or "position" in name else 1.2) / (1 if "embed" in name else fan ** 0.5)))


def build(name, size="tiny", seed=1, mask=False):
    f, z = FAMILIES[name], SIZES[size]
    torch.manual_seed(seed)
    kind = f["model"]
    model = kind(z, lambda z: Moe(z, f["router"], f["way"], f["E"], f["K"], **f["more"])).eval()
    randomise(model, seed)
    g = torch.Generator().manual_seed(seed + 50)
    if kind is Language:
        inputs = {"input_ids": torch.randint(4, z["V"], (z["B"], z["S"]), generator=g)}
        labels, loss = inputs["input_ids"].clone(), "causal_lm"
    elif kind is Features:
        inputs = {"features": torch.randn(24, 13, generator=g)}
        labels, loss = torch.randint(0, 5, (24,), generator=g), "classification"
    else:
        inputs = {"pixel_values": torch.randn(z["B"], 3, 16, 16, generator=g)}
        labels, loss = torch.randint(0, 10, (z["B"],), generator=g), "classification"
    routers, experts, router_params = {}, {}, {}
    for path, m in model.named_modules():
        if isinstance(m, Moe):
            routers[path] = (path + ".gate", lambda mod, args, out: out, path)
            at = path.replace(".", r"\.")
            own = r"\.(up|down)" if m.stacked else r"\.experts\."
            experts[path] = [f"^{at}{own}"]
            router_params[path] = [f"^{at}" + r"\.(gate|hidden)\."]
    return dict(name=name, model=model, inputs=inputs, labels=labels, loss=loss, routers=routers, router_params=router_params,
                experts=experts, E=f["E"], K=f["K"], score=f["score"], vocab=z["V"])


def set_experts(model, how):
    for m in model.modules():
        if isinstance(m, Moe):
            m.eager = how == "eager"
    return True


AXES = {"input_ids": ("batch", "seq"), "pixel_values": ("batch",), "features": ("batch",)}


def export(model, inputs, path, exporter="dynamo", opset=None, dynamic=False, keep=False):
    set_experts(model, "as exported")
    names = list(inputs)
    common = dict(kwargs=dict(inputs), input_names=names, output_names=["logits"], opset_version=opset)
    with torch.no_grad():
        if exporter == "legacy":
            axes = {n: dict(enumerate(AXES[n])) for n in names} | {"logits": {0: "batch"}} if dynamic else None
            if keep:
                common.update(training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False)
            torch.onnx.export(model, (), path, dynamo=False, dynamic_axes=axes, **{**common, "opset_version": opset or 17})
            model.eval()
        else:
            dims = {"batch": torch.export.Dim("batch", max=64), "seq": torch.export.Dim("seq", max=64)}
            shapes = {n: {i: dims[a] for i, a in enumerate(AXES[n])} for n in names} if dynamic else None
            torch.onnx.export(model, (), path, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=False,
                              optimize=not keep, **common)
    return path
