#!/usr/bin/env bash
# Compiles every CUDA kernel for every architecture and runs some of them in an emulator, on a machine without a GPU.
#
#   tests/cuda_compile.sh [fetch]      (fetch: only brings NVRTC)
#
# NVRTC needs no driver, so the PyPI wheel is enough; it is unpacked into target/nvrtc once. The tests themselves print
# `not run` where the library is missing: here that is a failure, because this script is what proves that they ran.
set -euo pipefail
cd "$(dirname "$0")/.."

wheel="nvidia-cuda-nvrtc==13.0.*"
folder=${CARGO_TARGET_DIR:-$PWD/target}/nvrtc
library() { find "$folder" -name 'libnvrtc.so.*' -print -quit 2>/dev/null; }

if [ -z "$(library)" ]; then
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$folder" "$wheel"
fi
[ "${1:-}" != fetch ] || exit 0
lib=$(dirname "$(library)")
export LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

# `--quiet` prints a dot for each test before a line of the tests' own.
log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo test --quiet --features cuda --test cuda_compile --test cuda_emulate -- --nocapture 2>&1 | tee "$log"

if grep -q '^\.*not run' "$log"; then
    echo "a CUDA test did not run, see above" >&2
    exit 1
fi
compiled=$(sed -n 's/^\.*\([0-9][0-9]*\) kernels compiled$/\1/p' "$log")
if [ "${compiled:-0}" -lt 1 ]; then
    echo "no kernel was compiled" >&2
    exit 1
fi
echo "$compiled kernels compiled for six architectures"
