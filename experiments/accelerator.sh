#!/usr/bin/env bash
# All that is worth knowing of an accelerator, in less than eight minutes on an H200:
#
#     bash experiments/accelerator.sh OUT [--small]
#
# writes OUT/results.jsonl, a line for each check, and OUT/profile, a profile of one chunk of rounds. The package
# runs from the source tree, with jax, flax, optax, orbax-checkpoint, chex, numpy, scikit-learn, matplotlib and
# rich alone. --small tries the script itself, on a CPU in a few minutes.
set -euo pipefail
out=$(realpath -m "$1")
shift
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
exec python experiments/accelerator.py --out "$out" "$@"
