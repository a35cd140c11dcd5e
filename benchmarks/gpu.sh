#!/bin/sh
# heed on one CUDA device: rollouts, a reward model, DPO and PPO on a random 1B-shape Llama in bf16. Needs heed installed, and nothing else.
#   benchmarks/gpu.sh [PYTHON]    under 10 minutes; one line of JSON for each part; exits with 1 if any part failed
set -u
cd "$(dirname "$0")/.."
python=${1:-.venv/bin/python}
failed=0
for part in rollout-64 rollout-512 reward-model dpo ppo; do
    # each in a process of its own, so that one that lacks memory does not end the others
    if ! timeout 115 "$python" benchmarks/gpu.py "$part"; then
        echo "$part failed or took longer than 115 s" >&2
        failed=1
    fi
done
exit "$failed"
