#!/usr/bin/env bash
# Add the SHA-256 of every file of every package to lock files, so that pip refuses any other file (--require-hashes).
# Not for cpu.lock: PyTorch's CPU builds come from an index of their own, whose files differ between mirrors.
# Needs uv on the path. Usage: requirements/hash.sh docs.lock reasoning-gym.lock gpu.lock
set -euo pipefail
cd "$(dirname "$0")"
for lock in "$@"; do
  hashed=$(mktemp)
  grep '^#' "$lock" > "$hashed"
  uv pip compile --quiet --no-deps --generate-hashes --no-header --no-annotate --python-version 3.11.14 \
    --python-platform x86_64-manylinux_2_28 "$lock" >> "$hashed"
  mv "$hashed" "$lock"
  chmod 644 "$lock"
done
