#!/usr/bin/env python3
"""Writes needle/golden.json: what transformers answers with the needle model, f32 on a CPU.

  pip install torch transformers; python make_needle_golden.py ../../examples/needle/model ../../examples/needle/northanger_abbey.txt needle/golden.json

A short prompt and a needle in 2K tokens of the novel, each with its ids, the largest logits of the last position and every
64th, the norm of the last position's hidden states (embedding, each layer, the last one after the final norm), a greedy
continuation with the margin between best and second logit, and the mean loss of the prompt in nats a token.
"""
import hashlib
import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

model_dir, novel, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="eager").eval()
tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{model_dir}/tokenizer.json")
sentences = " ".join(open(novel, encoding="utf-8").read().split("\n")).split(". ")


def encode(text):
    return tokenizer.encode(text, add_special_tokens=False)


def needle(tokens):
    """The needle after the middle sentence; the last space is a token of its own."""
    fact = " The secret code of Catherine is 493821."
    ask = "\nQuestion: What is the secret code of Catherine? Answer: The secret code of Catherine is "
    n = 1
    while len(encode(". ".join(sentences[: n + 1]) + "." + fact + ask)) < tokens - 1:
        n += 1
    return ". ".join(sentences[: n // 2]) + "." + fact + " " + ". ".join(sentences[n // 2 : n]) + "." + ask


cases = []
for name, prompt in [("short", "It is a truth universally acknowledged"), ("needle-2k", needle(2048))]:
    ids = [0] + encode(prompt)
    with torch.no_grad():
        run = model(torch.tensor([ids]), output_hidden_states=True, use_cache=True)
        last, past = run.logits[0, -1], run.past_key_values
        loss = torch.nn.functional.cross_entropy(run.logits[0, :-1], torch.tensor(ids[1:]))
        greedy, margins, logits = [], [], last
        for _ in range(8):
            best = torch.topk(logits, 2)
            greedy.append(int(best.indices[0]))
            margins.append(round(float(best.values[0] - best.values[1]), 4))
            step = model(torch.tensor([[greedy[-1]]]), past_key_values=past, use_cache=True)
            past, logits = step.past_key_values, step.logits[0, -1]
    top = torch.topk(last, 16)
    cases.append(
        {
            "case": name,
            "ids": ids,
            "top_ids": top.indices.tolist(),
            "top_logits": [round(float(v), 6) for v in top.values],
            "every_64th_logit": [round(float(v), 6) for v in last[::64]],
            "hidden_last_l2": [round(float(h[0, -1].norm()), 5) for h in run.hidden_states],
            "greedy_ids": greedy,
            "greedy_margin": margins,
            "loss_mean": float(loss),
        }
    )
    print(name, len(ids), tokenizer.decode(greedy), margins, float(loss))
sha256 = hashlib.sha256(open(f"{model_dir}/model.safetensors", "rb").read()).hexdigest()
made_by = f"transformers {transformers.__version__}, torch {torch.__version__}, f32, eager attention, CPU"
json.dump({"made_by": made_by, "weights_sha256": sha256, "cases": cases}, open(out, "w"), separators=(",", ":"))
