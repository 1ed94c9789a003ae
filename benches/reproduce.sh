#!/usr/bin/env bash
# The paper's tables and figures from a checkpoint of yours, dense beside the sparse modes.
#
#   benches/reproduce.sh MODEL [OUT_DIR]
#
# MODEL is what `minference --model` takes: a directory or a .gguf file. Everything goes to OUT_DIR (default
# target/reproduce): JSON with every prompt's result, tables as text, pictures, and all tables in tables.md.
# Stop it at any time; the same command goes on where it stopped. With everything at its default an 8B model on one data
# centre GPU takes a day or more: the variables below make it smaller.
#
#   LENGTHS=4K,8K,...    tokens of prompt and answer (default: doubling to what the model is made for, at most 128K)
#   ATTENTION="A B ..."  modes (default: the model's official patterns where there are some, the paper's A-shape baseline,
#                        vertical-slash alone and block-sparse alone, as in its ablation)
#   SAMPLES ROUNDS DEPTHS  per cell (25, 5, 10 as in the paper's scripts); RUNS of the latency (3); POSITIONS of the
#                        perplexity (0: all)
#   DATA="F ..."         squad.json, hotpot.json, a directory of InfiniteBench's JSONL files; without them those tasks are
#                        left out. BOOKS: a directory of .txt files for the perplexity (default: the novel in the program)
#   ONLY="needle ruler"  some of: needle ruler infinitebench perplexity latency
#   DEVICE MORE          --device (auto), and any further flags, such as MORE="--rope-scaling yarn:4"
#   MINFERENCE           the program (default: built here with --release, features $FEATURES)
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2; }
model=$(realpath -m "$1")
[ -e "$model" ] || model=$1
out=$(realpath -m "${2:-target/reproduce}")
cd "$(dirname "$0")/.."
mkdir -p "$out"

if [ -z "${MINFERENCE:-}" ]; then
    cargo build --release --bin minference ${FEATURES:+--features "$FEATURES"}
    MINFERENCE=target/release/minference
fi
common=(--model "$model" --device "${DEVICE:-auto}")
read -ra more <<<"${MORE:-}"
common+=("${more[@]}")

read -ra modes <<<"${ATTENTION:-config a_shape:1024:4096 vertical_slash:1000:6096 block_sparse:100}"
attention=()
for mode in "${modes[@]}"; do
    # A model without an official pattern file has no `config`: said, and left out.
    if [ "$mode" = config ] && ! why=$("$MINFERENCE" run "${common[@]}" --prompt x --max-new-tokens 0 --attention config --quiet 2>&1 >/dev/null); then
        echo "no config column: ${why#error: }" >&2
        continue
    fi
    attention+=(--attention "$mode")
done
lengths=()
[ -z "${LENGTHS:-}" ] || lengths=(--lengths "$LENGTHS")
data=()
for path in ${DATA:-}; do data+=(--data "$path"); done
books=()
[ -z "${BOOKS:-}" ] || books=(--data "$BOOKS")

# name, title, then the arguments of `minference eval`
evaluate() {
    local name=$1 title=$2
    shift 2
    case " ${ONLY:-needle ruler infinitebench perplexity latency} " in *" $name "*) ;; *) return 0 ;; esac
    printf '\n== %s\n' "$title" >&2
    NO_COLOR=1 "$MINFERENCE" eval "$name" "${common[@]}" "${attention[@]}" "${lengths[@]}" "$@" \
        --out "$out/$name.json" --plot "$out/$name.svg" >"$out/$name.txt.part"
    mv "$out/$name.txt.part" "$out/$name.txt"
    cat "$out/$name.txt"
}

evaluate needle "Needle in a haystack (figures 6 and 9)" --depths "${DEPTHS:-10}" --rounds "${ROUNDS:-5}"
evaluate ruler "RULER (table 3)" --samples "${SAMPLES:-25}" "${data[@]}"
evaluate infinitebench "InfiniteBench (tables 2 and 4)" --samples "${SAMPLES:-25}" "${data[@]}"
evaluate perplexity "Perplexity (figure 5)" --positions "${POSITIONS:-0}" "${books[@]}"
evaluate latency "Latency (figure 1b)" --rounds "${RUNS:-3}"

{
    echo "# $(basename "$model"), $("$MINFERENCE" --version)"
    for name in needle ruler infinitebench perplexity latency; do
        [ -f "$out/$name.txt" ] || continue
        printf '\n## %s\n\n```\n' "$name"
        cat "$out/$name.txt"
        printf '```\n\n![%s](%s.svg)\n' "$name" "$name"
    done
} >"$out/tables.md"
echo "all tables: $out/tables.md" >&2
