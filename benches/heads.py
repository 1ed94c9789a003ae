#!/usr/bin/env python3
"""All heads of a model under several methods, head by head: a table, a picture, and paired comparisons with intervals.

    minference run --model M.gguf --prompt-file B.txt --max-new-tokens 0 --attention flex:0.95 --report flex-b.json
    ...
    python3 benches/heads.py TARGET flex:0.95=flex-b.json,flex-c.json searched=searched-b.json,searched-c.json ... \\
        [--of searched,..]

Each LABEL=REPORT,REPORT.. is a method with one `run --report` of each text, in the same order for all. Writes
TARGET.md (mean and 5th percentile of recall, output error, density), TARGET.svg (recall and error over density, the
budgets of a method, which its name before the first colon says, joined by a line), and with `--of` how each of those
methods does against every other one: the differences in the mean and the 5th percentile of recall and the ratio of the densities, heads
of all texts paired, with 95 % bootstrap intervals (10,000 draws of heads; the texts of a head are drawn together). Needs
nothing but Python.
"""
import json
import pathlib
import random
import sys

from tradeoff import picture

DRAWS = 10_000


def heads(path):
    """(recall, error, density) of each head, layer after layer."""
    report = json.loads(pathlib.Path(path).read_text())
    return [(h["recall"], h.get("error", float("nan")), h["density"]) for layer in report["layers"] for h in layer["heads"]]


def percentile(values, part):
    """Linear between neighbours, as numpy's default."""
    values = sorted(values)
    at = part * (len(values) - 1)
    low = int(at)
    return values[low] + (values[min(low + 1, len(values) - 1)] - values[low]) * (at - low)


def mean(values):
    return sum(values) / len(values)


def interval(draws):
    return percentile(draws, 0.025), percentile(draws, 0.975)


def statistics(ours, theirs, chosen):
    """Of the chosen heads: differences in mean and 5th percentile of recall, and ratio of densities."""
    a = [x for h in chosen for x in ours[h]]
    b = [x for h in chosen for x in theirs[h]]
    recall = lambda rows: [r for r, _, _ in rows]
    density = lambda rows: mean([d for _, _, d in rows])
    low = lambda rows: percentile(recall(rows), 0.05)
    return mean(recall(a)) - mean(recall(b)), low(a) - low(b), density(a) / density(b)


def compare(ours, theirs, seed=0):
    n, rng = len(ours), random.Random(seed)
    exact = statistics(ours, theirs, range(n))
    draws = [statistics(ours, theirs, [rng.randrange(n) for _ in range(n)]) for _ in range(DRAWS)]
    return [(value, *interval([draw[i] for draw in draws])) for i, value in enumerate(exact)]


def main():
    arguments = sys.argv[1:]
    of = []
    if "--of" in arguments:
        at = arguments.index("--of")
        of = arguments[at + 1].split(",")
        del arguments[at : at + 2]
    if len(arguments) < 2:
        sys.exit(__doc__)
    target, methods = arguments[0], {}
    for argument in arguments[1:]:
        label, _, paths = argument.rpartition("=")
        # [head][text]
        methods[label] = list(zip(*(heads(path) for path in paths.split(","))))
    sizes = {(len(rows), len(rows[0])) for rows in methods.values()}
    if len(sizes) != 1:
        sys.exit(f"methods have different numbers of heads or texts: {sorted(sizes)}")
    (n, texts), lines, points = sizes.pop(), [], {}
    lines.append(f"{n} heads, {texts} texts.\n")
    lines.append("| method | density | recall | 5th percentile | least | output error | 95th percentile |")
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for label, rows in methods.items():
        recall, error, density = zip(*(x for head in rows for x in head))
        row = {"pattern": label, "density": mean(density), "recall": mean(recall), "rel_l2": mean(error)}
        points.setdefault(label.split(":")[0], []).append(row)
        lines.append(
            f"| `{label}` | {row['density']:.3f} | {row['recall']:.4f} | {percentile(recall, 0.05):.4f} | {min(recall):.3f} "
            f"| {row['rel_l2']:.4f} | {percentile(error, 0.95):.4f} |"
        )
    for chosen in of:
        lines.append(f"\n`{chosen}` against the others, heads paired, 95 % bootstrap intervals:\n")
        lines.append("| against | mean recall | 5th percentile of recall | density, ratio |")
        lines.append("| --- | --- | --- | --- |")
        for label, rows in methods.items():
            if label == chosen:
                continue
            cells = compare(methods[chosen], rows)
            signs = [f"{x:+.4f} ({low:+.4f} to {high:+.4f})" for x, low, high in cells[:2]]
            ratio, low, high = cells[2]
            lines.append(f"| `{label}` | {signs[0]} | {signs[1]} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")
    text = "\n".join(lines) + "\n"
    pathlib.Path(target + ".md").write_text(text)
    picture(target + ".svg", f"{n} heads", points)
    print(text, end="")


main()
