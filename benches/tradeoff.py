#!/usr/bin/env python3
"""What each method keeps of real attention heads, at what density: benches/results/tradeoff.{svg,md,json}.

    cargo build --release
    python3 benches/tradeoff.py target/release/minference ../shared/real-heads benches/results/tradeoff

One attention head of a real model in each file (`q`, `k`, `v` [T, D]); every method is computed on each, and its recall
(kept attention mass), output error (relative L2) and density are averaged over the heads. Needs nothing but Python.
"""
import json
import math
import pathlib
import subprocess
import sys

METHODS = {
    "a_shape": [f"a_shape:64:{n}" for n in (64, 256, 512, 1024, 2048)],
    "vertical_slash": [f"vertical_slash:{v}:{s}" for v, s in ((30, 100), (100, 200), (200, 400), (500, 700), (1000, 1000))],
    "block_sparse": [f"block_sparse:{k}" for k in (2, 4, 8, 16, 32)],
    "flex": [f"flex:{g}" for g in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)],
    "threshold": [f"threshold:{a}" for a in (0.5, 0.2, 0.1, 0.05, 0.02, 0.005)],
    "recall": [f"recall:{f}:1" for f in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)],
    "xattention": [f"xattention:8:{t}" for t in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)],
    "tri_shape": [f"tri_shape:64:{n}:128" for n in (64, 512, 1024)],
}
COLOURS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf", "#7f7f7f", "#bcbd22"]


def measure(program, head, pattern):
    command = [program, "attend", "--device", "cpu", "--input", head, "--pattern", pattern, "--compare", "dense", "--json", "-q"]
    out = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {key: out[key] for key in ("recall", "rel_l2", "density", "estimate_ms", "index_ms", "attention_ms", "dense_ms")}


def panel(x0, title, value, points, ticks):
    """One picture from x0 on: `value` of each row over its density, both by logarithm; `ticks` ascend and bound it."""
    width, height = 400, 320
    densities = (0.02, 0.05, 0.1, 0.2, 0.5, 1)
    place = lambda v, scale: math.log(max(v, scale[0] / 10) / scale[0]) / math.log(scale[-1] / scale[0])
    x = lambda d: x0 + 60 + place(d, densities) * (width - 80)
    y = lambda v: 40 + (height - 40) * (1 - place(v, ticks))
    clip = f"clip{x0}"
    out = [f'<text x="{x0 + 60 + (width - 80) / 2}" y="22" text-anchor="middle" font-weight="bold">{title}</text>']
    for d in densities:
        out.append(f'<line x1="{x(d):.1f}" x2="{x(d):.1f}" y1="40" y2="{height}" stroke="#ddd"/><text x="{x(d):.1f}" y="{height + 16}" text-anchor="middle">{d}</text>')
    for v in ticks:
        out.append(f'<line x1="{x0 + 60}" x2="{x0 + width - 20}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="#ddd"/><text x="{x0 + 54}" y="{y(v) + 4:.1f}" text-anchor="end">{v}</text>')
    out.append(f'<text x="{x0 + 60 + (width - 80) / 2}" y="{height + 34}" text-anchor="middle">density: computed pairs of all causal ones</text>')
    out.append(f'<clipPath id="{clip}"><rect x="{x0 + 60}" y="40" width="{width - 80}" height="{height - 40}"/></clipPath><g clip-path="url(#{clip})">')
    for colour, rows in zip(COLOURS, points.values()):
        line = " ".join(f"{x(r['density']):.1f},{y(value(r)):.1f}" for r in sorted(rows, key=lambda r: r["density"]))
        out.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(r["density"]):.1f}" cy="{y(value(r)):.1f}" r="3.5" fill="{colour}"><title>{r["pattern"]}</title></circle>' for r in rows]
    return [*out, "</g>"]


def picture(path, what, points):
    """Lost attention mass and output error over density, a line for each method: lower and further left is better."""
    svg = panel(0, f"lost attention mass (1 - recall), mean of {what}", lambda r: 1 - r["recall"], points, (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5))
    svg += panel(420, "relative error of the output", lambda r: r["rel_l2"], points, (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2))
    for i, (colour, name) in enumerate(zip(COLOURS, points)):
        svg.append(f'<rect x="840" y="{50 + 20 * i}" width="12" height="12" fill="{colour}"/><text x="858" y="{60 + 20 * i}">{name}</text>')
    svg.append(f'<text x="840" y="{70 + 20 * len(points)}" fill="#555">lower and further</text><text x="840" y="{85 + 20 * len(points)}" fill="#555">left is better</text>')
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="990" height="370" font-family="sans-serif" font-size="12"><rect width="990" height="370" fill="#fff"/>'
    pathlib.Path(path).write_text("\n".join([head, *svg, "</svg>"]) + "\n")


def main():
    program, folder, target = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    heads = sorted(folder.glob("*.safetensors"))
    if not heads:
        sys.exit(f"{folder}: no *.safetensors")
    points, raw = {}, {}
    for name, patterns in METHODS.items():
        points[name] = []
        for pattern in patterns:
            rows = {head.stem: measure(program, str(head), pattern) for head in heads}
            mean = {key: sum(r[key] for r in rows.values()) / len(rows) for key in next(iter(rows.values()))}
            points[name].append({"pattern": pattern, **mean, "least_recall": min(r["recall"] for r in rows.values())})
            raw[pattern] = rows
            print(f"{pattern}: density {mean['density']:.3f}, recall {mean['recall']:.4f}, error {mean['rel_l2']:.3f}", file=sys.stderr)
    picture(target + ".svg", f"{len(heads)} heads", points)
    table = ["| method | density | recall | least recall | output error | estimate + index, part of dense |", "| --- | --- | --- | --- | --- | --- |"]
    for rows in points.values():
        for r in rows:
            cost = (r["estimate_ms"] + r["index_ms"]) / r["dense_ms"]
            table.append(f"| `{r['pattern']}` | {r['density']:.3f} | {r['recall']:.4f} | {r['least_recall']:.3f} | {r['rel_l2']:.3f} | {cost:.2f} |")
    pathlib.Path(target + ".md").write_text("\n".join(table) + "\n")
    pathlib.Path(target + ".json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
