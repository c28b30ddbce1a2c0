#!/usr/bin/env bash
# Makes the Python that runs mlx-lm on a Linux CPU, unless it is there already, and prints its path.
#
#     python=$(bench/peers/mlx_env.sh target/mlx-venv)
#
# About 25 s and 350 MB. `mlx` alone has no backend on Linux: the `cpu` extra brings it. mlx-lm brings the rest
# (transformers, tokenizers, numpy); it needs Python 3.11 or later.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 VENV_DIR" >&2
    exit 2
fi
venv=$(realpath -m "$1")
python="$venv/bin/python"
packages=("mlx[cpu]==0.32.4" "mlx-lm==0.32.2")
marker="$venv/mlx-packages" # written last, so that an installation cut short is taken up again

if [ "$(cat "$marker" 2>/dev/null)" != "${packages[*]}" ]; then
    python3 -m venv "$venv" >&2
    "$python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
    "$python" -c "import mlx.core, mlx_lm"
    echo "${packages[*]}" >"$marker"
fi
echo "$python"
