#!/usr/bin/env python3
"""Writes dequant.safetensors: random blocks of every readable type and what gguf-py makes of them.

  pip install gguf==0.19.0 safetensors numpy; python make_dequant.py dequant.safetensors

Tensors: `TYPE.bytes` u8, `TYPE.values` f32. Scales are finite f16 numbers of either sign, zero and subnormal included.
"""
import sys
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize
from safetensors.numpy import save_file

SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}
rng = np.random.default_rng(1)
out = {}
for name, places in SCALES.items():
    kind = T[name]
    _, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (6, size), dtype=np.uint8)
    for at in places:
        scale = (rng.normal(size=6) * 10.0 ** rng.integers(-4, 2, 6)).astype(np.float16)
        scale[0], scale[1] = 0.0, 3e-7
        blocks[:, at:at + 2] = scale.view(np.uint8).reshape(6, 2)
    out[f"{name.lower()}.bytes"] = blocks.reshape(-1)
    out[f"{name.lower()}.values"] = dequantize(blocks, kind).reshape(-1)
halves = rng.normal(size=300).astype(np.float16)
out["f16.bytes"], out["f16.values"] = halves.view(np.uint8), halves.astype(np.float32)
wide = (rng.normal(size=300).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
out["bf16.bytes"], out["bf16.values"] = (wide.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), wide
save_file(out, sys.argv[1])
