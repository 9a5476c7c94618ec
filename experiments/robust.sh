#!/usr/bin/env bash
# Hostile clients: a fifth of the clients spoils its uploads, under four merges; three seeds.
# Usage: robust.sh OUT
set -euo pipefail
out=$1
options=(--algorithm fedavg --dataset digits --model mlp --clients 50 --cohort 20 --rounds 30
    --eval-every 30 --epochs 5 --quiet)

# run NAME SEED OPTIONS: executes a run, unless its directory holds a finished one
run() {
    local directory=$out/$1-$2
    [ -f "$directory/summary.json" ] || fedjax-masks run "${options[@]}" --out "$directory" \
        --seed "$2" --set data.seed="$2" --set attack.seed="$2" "${@:3}"
}

for seed in 0 1 2; do
    run fedavg $seed
    for kind in scale nan; do
        run $kind-mean $seed --set attack.kind=$kind
    done
    run scale-median $seed --set attack.kind=scale --set robust.merge=median
    run scale-trimmed-mean $seed --set attack.kind=scale --set robust.merge=trimmed_mean --set robust.trim=0.4
    run scale-clip $seed --set attack.kind=scale --set robust.clip_to_median=1.0
done
