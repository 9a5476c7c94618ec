#!/usr/bin/env bash
# Slow devices: skeletons that suit the speed of a device, and rounds with a deadline; three seeds.
# Usage: devices.sh OUT
set -euo pipefail
out=$1
options=(--dataset digits --partition shards:2 --clients 50 --rounds 50 --eval-every 25 --epochs 5 --quiet)
fleet=jetson-nano:1+phone-mid:1+rpi3:2@wifi
# A cohort stays for a cycle, and each filter is the mean over the clients that sent it.
cycle=(--set algorithm.cohorts=cycle --set algorithm.rest=own --set algorithm.absent=ignore --set algorithm.warm_up=0)

# run NAME SEED OPTIONS: executes a run, unless its directory holds a finished one
run() {
    local directory=$out/$1-$2
    [ -f "$directory/summary.json" ] || fedjax-masks run "${options[@]}" --out "$directory" \
        --seed "$2" --set data.seed="$2" "${@:3}"
}

for seed in 0 1 2; do
    run fedskel-whole $seed --algorithm fedskel "${cycle[@]}" --set algorithm.ratios=1.0 --devices $fleet
    run fedskel-by-device $seed --algorithm fedskel "${cycle[@]}" --set algorithm.ratios=devices --devices $fleet
    run fedavg $seed --algorithm fedavg --devices $fleet
    run fedavg-deadline $seed --algorithm fedavg --devices $fleet,deadline=0.3
done
