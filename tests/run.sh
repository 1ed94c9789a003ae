#!/usr/bin/env bash
# Runs every test on every backend that this machine has, and counts the cases per backend.
#
#   tests/run.sh [arguments for cargo test, for instance --features cuda]
#
# A GPU test that finds no adapter has nothing to run on, and a suite that silently ran nothing is worse than one that
# failed. So: where no adapter is found, a software one (Mesa's lavapipe) is installed first; and at the end the cases
# that passed are counted per backend and compared with tests/counts.txt, which is committed and only goes up.
set -euo pipefail
cd "$(dirname "$0")/.."

adapters() { # the wgpu devices of this machine, one a line
    cargo run --quiet --bin minference -- devices --json | tr '{' '\n' | sed -n 's/.*"id":"\(wgpu[^"]*\)".*"api":"\([^"]*\)","name":"\([^"]*\)".*/\1 \2 \3/p'
}

install_lavapipe() {
    local as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo --non-interactive)
    if ! command -v apt-get >/dev/null; then
        echo "no GPU adapter and no apt-get: install a Vulkan driver (Mesa's lavapipe runs on any CPU)" >&2
        exit 1
    fi
    echo "no GPU adapter found: installing Mesa's software Vulkan (mesa-vulkan-drivers, libvulkan1)"
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mesa-vulkan-drivers libvulkan1 >/dev/null
}

found=$(adapters)
if [ -z "$found" ]; then
    install_lavapipe
    found=$(adapters)
fi
printf 'adapters:\n%s\n' "${found:-none}"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# All binaries run even after a failure: one broken test must not hide the rest.
status=0
cargo test --no-fail-fast "$@" 2>&1 | tee "$log" || status=$?

# A case's name ends with the backend that it ran on (`rope::wgpu_subgroup`); cases without one need no device.
cases=$(awk '/^test .* \.\.\. ok$/ {
    n = split($2, part, "::")
    backend = part[n] ~ /^(cpu|wgpu|cuda)[a-z0-9_]*$/ && n > 1 ? part[n] : "host"
    count[backend]++
} END { for (backend in count) print backend, count[backend] }' "$log" | sort)
passed=$(grep -c '^test .* \.\.\. ok$' "$log" || true)
failed=$(grep -c '^test .* \.\.\. FAILED$' "$log" || true)
printf '\ncases that passed, per backend:\n%s\n' "$cases"

# Counts are of a default build; other arguments may select fewer.
while read -r backend least; do
    case $backend in '' | '#'*) continue ;; esac
    ran=$(awk -v b="$backend" '$1 == b {print $2}' <<<"$cases")
    if [ "${ran:-0}" -lt "$least" ]; then
        echo "too few cases on $backend: expected at least $least (tests/counts.txt), ran ${ran:-0}" >&2
        status=1
    fi
done <tests/counts.txt

echo "$passed passed, $failed failed"
exit "$status"
