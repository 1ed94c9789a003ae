#!/usr/bin/env python3
"""Pre-fill of a Llama-3-8B-shaped decoder in torch: the rival of `minference bench prefill --model llama-3-8b-262k`.

    python benches/torch_layers.py --lengths 8192,32768 --out torch-layers.json
    python benches/torch_layers.py --lengths 131072 --layers 4 --out torch-layers.json --append

bf16, random weights, batch 1: embedding, then in each layer RMSNorm, one product for q, k and v, RoPE, causal attention
by cuDNN through scaled_dot_product_attention, the output product, RMSNorm, one product for gate and up, SwiGLU, the down
product, and two residual sums; then the last norm and the output matrix for the last token. As in our own pre-fill the
last layer's output product and MLP see the last token only. Keys and values are not kept, which ours does.

Two ways to attend (K and V expanded to all heads, `enable_gqa`) and two forms of the element-wise parts (torch's own
operations, and fused by torch.compile) are timed; the fastest counts. Milliseconds are medians of CUDA-event times after
two runs to warm up.
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HIDDEN, HEADS, KV_HEADS, DIM, FFN, VOCAB, THETA, EPS = 4096, 32, 8, 128, 14336, 128256, 283461213.0, 1e-5


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--lengths", default="8192,32768")
    p.add_argument("--layers", type=int, default=32)
    p.add_argument("--repeat", type=int, default=10)
    p.add_argument("--forms", default="plain,compiled", help="of the element-wise parts")
    p.add_argument("--out", help="JSON: environment and rows")
    p.add_argument("--append", action="store_true", help="keeps the rows that are there")
    p.add_argument("--tiny", action="store_true", help="a shape for a machine without a GPU: does it run at all")
    return p.parse_args()


A = arguments()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if A.tiny:
    HIDDEN, HEADS, KV_HEADS, DIM, FFN, VOCAB = 64, 4, 2, 16, 128, 256


def norm(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, EPS)


def rotate(x, cosine, sine):
    """x [n, heads, D], cosine and sine [n, 1, D / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


PARTS = (norm, rotate, swiglu)
FORMS = {"plain": PARTS, "compiled": tuple(torch.compile(f, dynamic=True) for f in PARTS)}
FORMS = {name: FORMS[name] for name in A.forms.split(",")}


def attend(q, k, v, way):
    """q [1, H, n, D], k and v [1, KV, n, D]."""
    if way == "expanded":
        share = HEADS // KV_HEADS
        k, v = (x.repeat_interleave(share, dim=1) for x in (k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


class Layers:
    def __init__(self, layers):
        torch.manual_seed(1)

        def matrix(rows, columns):
            return torch.randn(rows, columns, device=DEVICE, dtype=torch.bfloat16) / columns**0.5

        width = (HEADS + 2 * KV_HEADS) * DIM
        self.layers = [
            (matrix(width, HIDDEN), matrix(HIDDEN, HEADS * DIM), matrix(2 * FFN, HIDDEN), matrix(HIDDEN, FFN))
            for _ in range(layers)
        ]
        self.ones = torch.ones(HIDDEN, device=DEVICE, dtype=torch.bfloat16)
        self.embed, self.head = matrix(VOCAB, HIDDEN), matrix(VOCAB, HIDDEN)

    def turns(self, n):
        frequencies = THETA ** -(torch.arange(0, DIM, 2, device=DEVICE, dtype=torch.float64) / DIM)
        angles = torch.arange(n, device=DEVICE, dtype=torch.float64)[:, None] * frequencies
        return tuple(f(angles).to(torch.bfloat16)[:, None, :] for f in (torch.cos, torch.sin))

    def prefill(self, ids, turns, way, form):
        norm, rotate, swiglu = FORMS[form]
        n, bands = len(ids), [HEADS, KV_HEADS, KV_HEADS]
        x = F.embedding(ids, self.embed)
        for i, (qkv_w, o_w, gate_up_w, down_w) in enumerate(self.layers):
            qkv = F.linear(norm(x, self.ones), qkv_w).view(n, -1, DIM)
            q, k, v = qkv.split(bands, dim=1)
            q, k = rotate(q, *turns), rotate(k, *turns)
            q, k, v = (t.transpose(0, 1)[None] for t in (q, k, v))
            attended = attend(q, k, v, way)[0].transpose(0, 1).reshape(n, -1)
            del qkv, q, k, v
            if i + 1 == len(self.layers):
                x, attended = x[-1:], attended[-1:]
            x = x + F.linear(attended, o_w)
            x = x + F.linear(swiglu(F.linear(norm(x, self.ones), gate_up_w)), down_w)
        return F.linear(norm(x[-1:], self.ones), self.head)


def time_ms(call):
    if DEVICE == "cpu":
        call()
        return [0.0]
    times = []
    for run in range(A.repeat + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        call()
        end.record()
        end.synchronize()
        if run >= 2:
            times.append(start.elapsed_time(end))
    return times


@torch.inference_mode()
def main():
    rows = json.load(open(A.out))["rows"] if A.append and A.out else []
    model = Layers(A.layers)
    allowed = SDPBackend.CUDNN_ATTENTION if DEVICE == "cuda" else SDPBackend.MATH
    for n in map(int, A.lengths.split(",")):
        ids, turns = torch.arange(n, device=DEVICE) * 7919 % VOCAB, model.turns(n)
        for form in FORMS:
            for way in ("expanded", "gqa"):
                row = dict(tokens=n, layers=A.layers, attention=way, elementwise=form)
                try:
                    with sdpa_kernel(allowed):
                        times = time_ms(lambda: model.prefill(ids, turns, way, form))
                    row.update(ms=statistics.median(times), ms_min=min(times), ms_max=max(times), runs=len(times))
                except Exception as error:  # noqa: BLE001: a way that this torch does not have is a row that says so
                    row.update(note=f"not run: {str(error).splitlines()[0][:160]}")
                rows.append(row)
                print(row, flush=True)
                torch.cuda.empty_cache()
    environment = dict(torch=torch.__version__, device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu")
    if DEVICE == "cuda":
        environment.update(cudnn=torch.backends.cudnn.version(), cuda=torch.version.cuda)
    if A.out:
        with open(A.out, "w") as file:
            json.dump(dict(environment=environment, rows=rows), file, indent=1)


main()
