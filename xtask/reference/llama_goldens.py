"""Writes tests/golden/llama.json: logits, loss, gradients and three clipped AdamW steps, in float64.

Usage: python xtask/reference/llama_goldens.py > tests/golden/llama.json
"""

import json

import torch

import llama

BASE = dict(vocab_size=48, d_model=16, n_layers=2, n_heads=4, n_kv_heads=2, d_ff=24, context_len=12, rope_theta=10000.0,
            norm_eps=1e-5)
ADAMW = dict(lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
STRIDE = 5


def noise(index, salt):
    """Uniform in [-0.5, 0.5) with 24 bits, the same in any language."""
    x = (index * 2654435761 + salt * 40503 + 12345) & 0xFFFFFFFF
    x ^= x >> 15
    x = (x * 2246822519) & 0xFFFFFFFF
    x ^= x >> 13
    return (x >> 8) / 2**24 - 0.5


def make_weights(spec):
    weights = {}
    for salt, (name, shape) in enumerate(llama.names_and_shapes(spec)):
        n = torch.Size(shape).numel()
        values = torch.tensor([noise(i, salt) for i in range(n)], dtype=torch.float64)
        values = values * 0.5 + 1.0 if len(shape) == 1 else values
        weights[name] = values.to(torch.float32).to(torch.float64).view(shape).requires_grad_()
    return weights


def make_tokens(spec, step):
    n = 4 * (spec["context_len"] + 1)
    tokens = [int((noise(i, 1000 + step) + 0.5) * spec["vocab_size"]) for i in range(n)]
    return torch.tensor(tokens).view(4, -1)


def sample(tensor):
    return [round(x, 9) for x in tensor.detach().flatten()[::STRIDE].tolist()]


def case(tied, clip_norm):
    spec = BASE | dict(tied_head=tied)
    weights = make_weights(spec)
    optimiser = torch.optim.AdamW(weights.values(), **ADAMW)
    out = dict(spec=spec, clip_norm=clip_norm, stride=STRIDE)
    out["logits"] = sample(llama.logits(weights, make_tokens(spec, 0)[:1, :-1], spec))
    out["losses"], out["norms"] = [], []
    for step in range(3):
        optimiser.zero_grad()
        loss = llama.loss(weights, make_tokens(spec, step), spec)
        loss.backward()
        out["losses"].append(loss.item())
        if step == 0:
            out["gradients"] = [sample(w.grad) for w in weights.values()]
            out["gradient_norms"] = [w.grad.norm().item() for w in weights.values()]
        out["norms"].append(torch.nn.utils.clip_grad_norm_(weights.values(), clip_norm).item())
        optimiser.step()
    out["params"] = [sample(w) for w in weights.values()]
    return out


print(json.dumps([case(True, 0.5), case(False, 100.0)]))
