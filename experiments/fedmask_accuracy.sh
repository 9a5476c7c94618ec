#!/usr/bin/env bash
# FedMask, as published, with keep_scores, and so without the prune, beside FedAvg, local training and Top-k; three seeds.
# Usage: fedmask_accuracy.sh OUT [--data-dir DIR]
set -euo pipefail
out=$1
shift
data_dir=("$@")
options=(--partition lotteryfl:2:1.0 --clients 100 --cohort 20 --epochs 5 --rounds 50 --eval-every 25 --quiet)

# run NAME DATASET MODEL SEED OPTIONS: executes a run, unless its directory holds a finished one
run() {
    local directory=$out/$2/$1-$4
    [ -f "$directory/summary.json" ] || fedjax-masks run "${options[@]}" --out "$directory" \
        --dataset "$2" --model "$3" --seed "$4" --set data.seed="$4" "${data_dir[@]}" "${@:5}"
}

for seed in 0 1 2; do
    for data in "fashion_mnist lenet" "cifar10 cifar-cnn"; do
        read -r dataset model <<<"$data"
        for algorithm in fedavg local; do
            run $algorithm "$dataset" "$model" $seed --algorithm $algorithm
        done
        run fedmask "$dataset" "$model" $seed --algorithm fedmask --set algorithm.keep_scores=false
        run fedmask-keep-scores "$dataset" "$model" $seed --algorithm fedmask --set algorithm.keep_scores=true
        run fedmask-keep-scores-no-prune "$dataset" "$model" $seed --algorithm fedmask \
            --set algorithm.keep_scores=true --set algorithm.prune_ratio=1
    done
    run topk cifar10 cifar-cnn $seed --algorithm topk
done
