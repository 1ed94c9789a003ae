#!/usr/bin/env bash
# Attention, estimation, matrix products and whole pre-fills at 8K, 32K and 128K tokens, each device beside the other, as
# Markdown. A device that is absent has a row `not run`.
#
#   benches/table.sh [OUT.md]
#
#   DEVICES="wgpu cuda"  LENGTHS="8192 32768 131072"  REPEAT=10  LAYERS=4 (of MODEL; 32 is all of llama-3-8b-262k)
#   MINFERENCE, MATMUL, ESTIMATE: the program and the bench binaries (default: built here, with the feature cuda)
set -euo pipefail
cd "$(dirname "$0")/.."

out=${1:-/dev/stdout}
lengths=${LENGTHS:-8192 32768 131072}
repeat=${REPEAT:-10}
devices=()
for device in ${DEVICES:-wgpu cuda}; do devices+=(--device "$device"); done
if [ -z "${MINFERENCE:-}" ]; then
    cargo build --release --features cuda --bin minference
    MINFERENCE=target/release/minference
fi
common=(--lengths "${lengths// /,}" "${devices[@]}" --format md)

# Criterion's lines as rows: `group/size/case/device  time: [low median high]`, or `not run`.
rows() {
    printf '| case | device | ms |\n| --- | --- | --- |\n'
    awk -v lengths=" $lengths " '
        function row(id, value,   part, n) {
            n = split(id, part, "/")
            printf "| %s %s %s | %s | %s |\n", part[1], part[2], part[3], part[n], value
        }
        /: not run: / { # of the lengths asked for
            split($1, at, "/")
            if (!index(lengths, " " at[2] " ")) next
            split($0, half, ": not run: ")
            row(half[1], "not run: " half[2])
            next
        }
        /^[a-z_]+\/[0-9]+\// { id = $1; if (NF > 1 && $2 !~ /^time:/) for (i = 2; i <= NF && $i != "time:"; i++) id = id " " $i }
        /time: +\[/ {
            sub(/.*\[/, ""); sub(/\].*/, "")
            scale = $4 == "s" ? 1000 : $4 == "ms" ? 1 : $4 == "ns" ? 1e-6 : 1e-3
            row(id, sprintf("%.3f", $3 * scale))
        }'
}
filter() { printf '/(%s)/' "${lengths// /|}"; }
criterion() { # a bench by name, or its binary
    local binary=$2
    if [ -n "$binary" ]; then set -- "$binary" --bench; else set -- cargo bench --features cuda --bench "$1" --; fi
    "$@" --noplot --measurement-time 0.5 --warm-up-time 0.2 "$(filter)" 2>/dev/null | rows
}

{
    printf '## Attention, estimated sets\n\n32 query heads on 8, D 128; ms is the kernel, speed-up counts estimate and index.\n\n'
    "$MINFERENCE" bench attention "${common[@]}" --repeat "$repeat"
    printf '\n## Attention, sets of the `bands` recipe\n\n'
    "$MINFERENCE" bench attention "${common[@]}" --repeat "$repeat" --index bands \
        --pattern vertical_slash:1000:6096 --pattern vertical_slash:3500:100
    printf '\n## Whole pre-fills, %s, %s layers, random weights\n\n' "${MODEL:-llama-3-8b-262k}" "${LAYERS:-4}"
    "$MINFERENCE" bench prefill --model "${MODEL:-llama-3-8b-262k}" --layers "${LAYERS:-4}" --weight-type f16 "${common[@]}" \
        --attention config --repeat 3
    printf '\n## Estimation, 8 query heads on 2\n\n'
    criterion estimate "${ESTIMATE:-}"
    printf '\n## Products with a matrix [4096, 4096]; the size is rows\n\n'
    criterion matmul "${MATMUL:-}"
} >"$out"
