"""Tokens per second of PyTorch on this CPU: the same model, shapes and optimiser as tests/bench/train.rs.

Reads one JSON object on standard input: spec, batch, micro_batch, threads, steps, runs. For every run waits for a line on
standard input, so that the caller can take turns with it, and answers with one line: tokens per second of the eager model,
and of the same model with scaled_dot_product_attention, rms_norm and the fused AdamW.
"""

import json
import sys
import time

import torch
import torch.nn.functional as F

import llama


def fused_logits(weights, tokens, spec):
    """llama.logits with PyTorch's own fused operators."""
    norm = lambda x, name: F.rms_norm(x, (x.shape[-1],), weights[name], spec["norm_eps"])
    x = F.embedding(tokens, weights["model.embed_tokens.weight"])
    cos, sin = llama.rope_tables(spec, tokens.shape[1], x.dtype)
    batch, length, d = x.shape
    for layer in range(spec["n_layers"]):
        p = f"model.layers.{layer}."
        h = norm(x, p + "input_layernorm.weight")
        heads = lambda name, n: F.linear(h, weights[p + name]).view(batch, length, n, -1).transpose(1, 2)
        q = heads("self_attn.q_proj.weight", spec["n_heads"])
        k = heads("self_attn.k_proj.weight", spec["n_kv_heads"])
        v = heads("self_attn.v_proj.weight", spec["n_kv_heads"])
        q, k = (t * cos + llama.rotate_half(t) * sin for t in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, d)
        x = x + F.linear(mixed, weights[p + "self_attn.o_proj.weight"])
        h = norm(x, p + "post_attention_layernorm.weight")
        h = F.silu(F.linear(h, weights[p + "mlp.gate_proj.weight"])) * F.linear(h, weights[p + "mlp.up_proj.weight"])
        x = x + F.linear(h, weights[p + "mlp.down_proj.weight"])
    x = norm(x, "model.norm.weight")
    return F.linear(x, weights["model.embed_tokens.weight" if spec["tied_head"] else "lm_head.weight"])


class Trainer:
    def __init__(self, job, logits, fused):
        torch.manual_seed(1)
        self.job, self.logits = job, logits
        self.weights = {
            name: (torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * 0.02).requires_grad_()
            for name, shape in llama.names_and_shapes(job["spec"])
        }
        self.optimiser = torch.optim.AdamW(
            self.weights.values(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=fused or None)

    def step(self, micro_batch):
        spec, n_parts = self.job["spec"], self.job["batch"] // micro_batch
        tokens = torch.randint(0, spec["vocab_size"], (self.job["batch"], spec["context_len"] + 1))
        self.optimiser.zero_grad()
        total = 0.0
        for part in tokens.split(micro_batch):
            out = self.logits(self.weights, part[:, :-1], spec)
            loss = F.cross_entropy(out.reshape(-1, out.shape[-1]), part[:, 1:].reshape(-1)) / n_parts
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimiser.step()
        return total

    def tokens_per_second(self, micro_batch):
        self.step(micro_batch)
        start = time.perf_counter()
        for _ in range(self.job["steps"]):
            self.step(micro_batch)
        seconds = time.perf_counter() - start
        return self.job["steps"] * self.job["batch"] * self.job["spec"]["context_len"] / seconds


def main():
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    eager, fused = Trainer(job, llama.logits, False), Trainer(job, fused_logits, True)
    for _ in range(job["runs"]):
        if not sys.stdin.readline():
            break
        # The whole batch at once or in the same micro-batches, whichever PyTorch does faster.
        speeds = [max(trainer.tokens_per_second(part) for part in {job["batch"], job["micro_batch"]})
                  for trainer in (eager, fused)]
        print(json.dumps(speeds), flush=True)


main()
