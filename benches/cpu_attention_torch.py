#!/usr/bin/env python3
"""CPU attention beside torch's, on the same tensors, the same threads, in one run.

    cargo build --release
    python3 -m venv /tmp/torch && /tmp/torch/bin/pip install torch numpy
    /tmp/torch/bin/python benches/cpu_attention_torch.py --threads 2 HEAD.safetensors ...
    /tmp/torch/bin/python benches/cpu_attention_torch.py --threads 2 --synthetic 32768

For each file with q [T, D] and k, v [T, D] (or [H, T, D]): dense causal attention in f32 by torch's
scaled_dot_product_attention and by `minference attend --pattern dense --device cpu`, turn about, least of the rounds of
each: other work on the machine only ever adds time. `--synthetic N` makes one head of N tokens with sinks, columns and
slashes, and times the sparse patterns too, estimation and index included, against our dense.
"""
import argparse
import json
import math
import os
import struct
import subprocess
import tempfile
import time

import torch

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


def load(path):
    with open(path, "rb") as f:
        size, = struct.unpack("<Q", f.read(8))
        head = json.loads(f.read(size))
        data = bytearray(f.read())
    tensors = []
    for name in "qkv":
        entry = head[name]
        start, end = entry["data_offsets"]
        flat = torch.frombuffer(data, dtype=DTYPES[entry["dtype"]], count=math.prod(entry["shape"]), offset=start)
        tensors.append(flat.view(entry["shape"]).float())
    return [t if t.dim() == 3 else t[None] for t in tensors]


def save(path, tensors):
    head, offset = {}, 0
    for name, t in tensors.items():
        head[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [offset, offset + 4 * t.numel()]}
        offset += 4 * t.numel()
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for t in tensors.values():
            f.write(t.contiguous().numpy().tobytes())


def synthetic(n, d, seed=1):
    """One head whose attention has sinks, columns, a local band and one far diagonal."""
    g = torch.Generator().manual_seed(seed)
    half, low = d // 2, d // 16
    inv = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(n, dtype=torch.float64)[:, None] * inv

    def rope(x):
        a, b = x[:, :half], x[:, half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1).float()

    weight = torch.rand(half, generator=g, dtype=torch.float64) ** 2
    weight[-low:] = 0
    amp = (6.0 * math.sqrt(d) * weight / weight.sum()).sqrt()
    strength = torch.zeros(n, dtype=torch.float64)
    columns = torch.randperm(n, generator=g)[: n // 40]
    strength[columns] = 3.0 * torch.rand(len(columns), generator=g, dtype=torch.float64)
    strength[:4] = 4.0
    k = torch.randn(n, d, generator=g, dtype=torch.float64)
    k[:, :half] += amp
    k[:, half - low:half] += math.sqrt(math.sqrt(d) / low) * strength[:, None]
    q = torch.randn(n, d, generator=g, dtype=torch.float64)
    q[:, :half] += amp
    q[:, half - low:half] += math.sqrt(math.sqrt(d) / low)
    return rope(q)[None], rope(k)[None], torch.randn(1, n, d, generator=g)


def time_torch(q, k, v):
    q, k, v = (t[None] for t in (q, k, v))
    start = time.perf_counter()
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
    return 1e3 * (time.perf_counter() - start)


def attend(args, path, pattern):
    command = [args.binary, "attend", "--input", path, "--pattern", pattern, "--device", "cpu", "--json", "-q"]
    env = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    out = subprocess.run(command + ["--repeat", "3"], env=env, check=True, capture_output=True, text=True).stdout
    return json.loads(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--binary", default="target/release/minference")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--synthetic", type=int, metavar="N")
    parser.add_argument("--patterns", nargs="*", default=["a_shape:128:1536", "vertical_slash:30:800",
                        "vertical_slash:1000:6096", "vertical_slash:1500:100", "block_sparse:26"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), {args.threads} threads, f32\n")
    print("| input | tokens | head_dim | torch ms | ours ms | ours / torch |\n|---|---|---|---|---|---|")

    def dense(name, path, rounds):
        q, k, v = load(path)
        ours, theirs = [], []
        for _ in range(rounds):
            theirs += [time_torch(q, k, v) for _ in range(3)]
            ours.append(attend(args, path, "dense")["attention_ms"])
        a, b = min(ours), min(theirs)
        print(f"| {name} | {q.shape[1]} | {q.shape[2]} | {b:.1f} | {a:.1f} | {a / b:.2f} |", flush=True)
        return a

    for path in args.files:
        dense(os.path.basename(path).removesuffix(".safetensors"), path, args.rounds)
    if args.synthetic:
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "synthetic.safetensors")
            save(path, dict(zip("qkv", synthetic(args.synthetic, 128))))
            base = dense("synthetic", path, 2)
            print("\n| pattern | density | estimate ms | index ms | attention ms | total / dense |\n|---|---|---|---|---|---|")
            for pattern in args.patterns:
                runs = [attend(args, path, pattern) for _ in range(2)]
                parts = [min(run[f"{part}_ms"] for run in runs) for part in ("estimate", "index", "attention")]
                cells = " | ".join(f"{ms:.1f}" for ms in parts)
                print(f"| {pattern} | {runs[0]['density']:.3f} | {cells} | {sum(parts) / base:.3f} |", flush=True)


if __name__ == "__main__":
    main()
