"""Hugging Face's LlamaForCausalLM written plainly in PyTorch: what src/model must equal.

Weights are a dict of the state dict's names; nothing is fused, nothing is clever.
"""

import math

import torch
import torch.nn.functional as F


def names_and_shapes(spec):
    """The trainable tensors in state-dict order."""
    d, d_kv = spec["d_model"], spec["d_model"] // spec["n_heads"] * spec["n_kv_heads"]
    yield "model.embed_tokens.weight", (spec["vocab_size"], d)
    for layer in range(spec["n_layers"]):
        prefix = f"model.layers.{layer}."
        yield prefix + "self_attn.q_proj.weight", (d, d)
        yield prefix + "self_attn.k_proj.weight", (d_kv, d)
        yield prefix + "self_attn.v_proj.weight", (d_kv, d)
        yield prefix + "self_attn.o_proj.weight", (d, d)
        yield prefix + "mlp.gate_proj.weight", (spec["d_ff"], d)
        yield prefix + "mlp.up_proj.weight", (spec["d_ff"], d)
        yield prefix + "mlp.down_proj.weight", (d, spec["d_ff"])
        yield prefix + "input_layernorm.weight", (d,)
        yield prefix + "post_attention_layernorm.weight", (d,)
    yield "model.norm.weight", (d,)
    if not spec["tied_head"]:
        yield "lm_head.weight", (spec["vocab_size"], d)


def rms_norm(x, weight, eps):
    return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))


def rope_tables(spec, length, dtype):
    width = spec["d_model"] // spec["n_heads"]
    frequencies = 1.0 / spec["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.outer(torch.arange(length, dtype=torch.float64), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_half(x):
    low, high = x.chunk(2, dim=-1)
    return torch.cat((-high, low), dim=-1)


def attention(weights, prefix, x, spec, cos, sin):
    batch, length, d = x.shape
    width = d // spec["n_heads"]
    heads = lambda name, n: F.linear(x, weights[prefix + name]).view(batch, length, n, width).transpose(1, 2)
    q = heads("q_proj.weight", spec["n_heads"])
    k = heads("k_proj.weight", spec["n_kv_heads"])
    v = heads("v_proj.weight", spec["n_kv_heads"])
    q, k = (t * cos + rotate_half(t) * sin for t in (q, k))
    group = spec["n_heads"] // spec["n_kv_heads"]
    k, v = (t.repeat_interleave(group, dim=1) for t in (k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(width)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    probs = scores.masked_fill(future, float("-inf")).softmax(-1)
    mixed = (probs @ v).transpose(1, 2).reshape(batch, length, d)
    return F.linear(mixed, weights[prefix + "o_proj.weight"])


def logits(weights, tokens, spec):
    """Token ids [batch, length] -> logits [batch, length, vocab]."""
    x = F.embedding(tokens, weights["model.embed_tokens.weight"])
    cos, sin = rope_tables(spec, tokens.shape[1], x.dtype)
    for layer in range(spec["n_layers"]):
        p = f"model.layers.{layer}."
        x = x + attention(weights, p + "self_attn.", rms_norm(x, weights[p + "input_layernorm.weight"], spec["norm_eps"]),
                          spec, cos, sin)
        h = rms_norm(x, weights[p + "post_attention_layernorm.weight"], spec["norm_eps"])
        h = F.silu(F.linear(h, weights[p + "mlp.gate_proj.weight"])) * F.linear(h, weights[p + "mlp.up_proj.weight"])
        x = x + F.linear(h, weights[p + "mlp.down_proj.weight"])
    x = rms_norm(x, weights["model.norm.weight"], spec["norm_eps"])
    head = weights["model.embed_tokens.weight" if spec["tied_head"] else "lm_head.weight"]
    return F.linear(x, head)


def loss(weights, tokens, spec):
    """Mean next-token cross-entropy of [batch, length + 1] token ids, in nats."""
    out = logits(weights, tokens[:, :-1], spec)
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), tokens[:, 1:].reshape(-1))
