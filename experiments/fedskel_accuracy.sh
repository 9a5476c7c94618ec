#!/usr/bin/env bash
# FedSkel beside FedAvg and local training; three seeds. Usage: fedskel_accuracy.sh OUT [--data-dir DIR]
set -euo pipefail
out=$1
shift
options=(--partition shards:2 --cohort 10 --epochs 1 --batch-size 10 --rounds 100 --eval-every 50)
options+=(--set algorithm.lr=0.05 --set algorithm.momentum=0.5 --quiet)
# A cohort stays for a cycle, and each filter is the mean over the clients that sent it.
cycle=(--set algorithm.cohorts=cycle --set algorithm.rest=own --set algorithm.absent=ignore --set algorithm.warm_up=0)

# run NAME OPTIONS: executes a run, unless its directory holds a finished one
run() {
    local directory=$out/$1
    shift
    [ -f "$directory/summary.json" ] || fedjax-masks run "${options[@]}" --out "$directory" "$@"
}

for seed in 0 1 2; do
    seeds=(--seed $seed --set data.seed=$seed)
    for data in "cifar10 cifar-cnn" "fashion_mnist lenet"; do
        read -r dataset model <<<"$data"
        for algorithm in "fedskel ${cycle[*]}" fedavg local; do
            read -ra options_of <<<"$algorithm"
            run "$dataset/${options_of[0]}-$seed" --algorithm "${options_of[@]}" --dataset $dataset --model $model --clients 100 \
                --set data.examples_per_client=100 --set data.test_per_client=200 "${seeds[@]}" "$@"
        done
    done
    # Possible causes of the loss of accuracy: a fixed cohort per cycle, the skeleton, and its rounds per cycle.
    on_digits=(--dataset digits --clients 50 "${seeds[@]}")
    run digits/fedavg-$seed --algorithm fedavg "${on_digits[@]}"
    run digits/all-filters-$seed --algorithm fedskel "${cycle[@]}" --set algorithm.ratios=1.0 "${on_digits[@]}"
    run digits/a-fifth-$seed --algorithm fedskel "${cycle[@]}" "${on_digits[@]}"
    run digits/a-fifth-every-other-round-$seed --algorithm fedskel "${cycle[@]}" --set algorithm.updates=1 "${on_digits[@]}"
    run digits/a-fifth-after-a-whole-round-$seed --algorithm fedskel "${cycle[@]}" --rounds 101 "${on_digits[@]}"
    run digits/a-fifth-dense-too-$seed --algorithm fedskel "${cycle[@]}" --set algorithm.prune_dense=true \
        --set algorithm.dense_neurons=active "${on_digits[@]}"
done
