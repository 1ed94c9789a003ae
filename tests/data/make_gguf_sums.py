#!/usr/bin/env python3
"""Writes gguf-sums.json: a checksum of every tensor of the model files as gguf-py dequantises them.

  pip install gguf==0.19.0 numpy; python make_gguf_sums.py DIR gguf-sums.json

Per file and element type: tensors, elements, and the sum of (2 i + 1) * bits(x[i]) over the elements of each tensor,
modulo 2^64. Equal sums mean equal values in equal places.
"""
import glob, json, os, sys
import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

out = {}
for path in sorted(glob.glob(os.path.join(sys.argv[1], "*.gguf"))):
    sums = out.setdefault(os.path.basename(path), {})
    for t in GGUFReader(path).tensors:
        entry = sums.setdefault(t.tensor_type.name.lower(), [0, 0, 0])
        rows = t.data.reshape(-1, t.data.shape[-1])
        done = total = 0
        for i in range(0, len(rows), 4096):
            x = np.ascontiguousarray(dequantize(rows[i:i + 4096], t.tensor_type), dtype=np.float32).reshape(-1)
            weight = 2 * np.arange(done, done + x.size, dtype=np.uint64) + np.uint64(1)
            total += int((x.view(np.uint32).astype(np.uint64) * weight).sum(dtype=np.uint64))
            done += x.size
        entry[0] += 1
        entry[1] += done
        entry[2] = (entry[2] + total) % 2**64
lines = [f" {json.dumps(f)}: {json.dumps({k: [n, e, str(s)] for k, (n, e, s) in v.items()})}" for f, v in out.items()]
open(sys.argv[2], "w").write("{\n" + ",\n".join(lines) + "\n}\n")
