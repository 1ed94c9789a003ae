#!/usr/bin/env bash
# What each method keeps of all heads of a model, whether patterns found on one text serve others, what auto and chunks
# cost and change:
#
#     benches/study.sh MINFERENCE MODEL FOLDER A.txt B.txt C.txt [ARGUMENT..]     # ARGUMENT: --device cuda, ...
#
# FOLDER gets the reports, `heads-LENGTH.{md,svg}` (benches/heads.py), `searched-LENGTH.json` from text A, and
# `kl.json`, `chunks-N.json`, `chunk-kl-N.json`. LENGTHS (default "16384 32000") are in tokens; METHODS are the patterns of the
# table. Texts are cut to the length at four bytes a token.
set -eu
program=$1 model=$2 out=$3 a=$4 b=$5 c=$6
shift 6
here=$(dirname "$0")
mkdir -p "$out"
lengths=${LENGTHS:-16384 32000}
methods=${METHODS:-a_shape:64:1024 a_shape:64:4096 vertical_slash:500:700 vertical_slash:512:2048 vertical_slash:1000:6096 \
    block_sparse:32 block_sparse:100 flex:0.8 flex:0.9 flex:0.95 threshold:0.1 threshold:0.02 threshold:0.005 \
    recall:0.8 recall:0.9 recall:0.95 xattention:16:0.8 xattention:16:0.9 xattention:8:0.9 tri_shape:8:512:128}
report() { # length pattern name text
    head -c $(($1 * 4)) "$4" > "$out/text.txt"
    "$program" run --model "$model" --prompt-file "$out/text.txt" --max-new-tokens 0 --attention "$2" --report "$3" -q "${more[@]}"
}
more=("$@")
for n in $lengths; do
    searched=$out/searched-$n.json
    [ -e "$searched" ] || "$program" search --model "$model" --prompt-file "$a" --length "$n" --recall "${RECALL:-0.95}" --output "$searched" -q "${more[@]}"
    labels=()
    for method in $methods config:$searched; do
        label=$method
        [ "$method" = "config:$searched" ] && label=searched
        for text in b c; do
            file=$out/$n-$label-$text.json
            [ -e "$file" ] || report "$n" "$method" "$file" "${!text}"
        done
        labels+=("$label=$out/$n-$label-b.json,$out/$n-$label-c.json")
    done
    python3 "$here/heads.py" "$out/heads-$n" "${labels[@]}" --of searched
done
rm -f "$out/text.txt"

# The next token's distribution against dense's at 1000 positions; chunks against the whole.
first=${lengths%% *}
"$program" eval perplexity --model "$model" --data "$b" --lengths "$first" --positions 1000 --attention flex:0.95 \
    --attention auto --attention "config:$out/searched-$first.json" --out "$out/kl.json" "${more[@]}"
for chunk in ${CHUNKS-0 2048 4096 8192 16384 32768}; do
    "$program" eval latency --model "$model" --data "$b" --lengths 32000 --rounds 3 --chunk "$chunk" --attention auto --out "$out/chunks-$chunk.json" "${more[@]}"
    "$program" eval perplexity --model "$model" --data "$b" --lengths 32000 --positions 1000 --chunk "$chunk" --attention auto --out "$out/chunk-kl-$chunk.json" "${more[@]}"
done
