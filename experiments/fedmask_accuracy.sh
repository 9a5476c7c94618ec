#!/usr/bin/env bash
# FedMask beside FedAvg and local training; three seeds. Usage: fedmask_accuracy.sh OUT [--data-dir DIR]
set -euo pipefail
out=$1
shift
options=(--partition lotteryfl:2:1.0 --clients 100 --cohort 20 --epochs 5 --rounds 50 --eval-every 25 --quiet)

for seed in 0 1 2; do
    for data in "fashion_mnist lenet" "cifar10 cifar-cnn"; do
        read -r dataset model <<<"$data"
        for algorithm in fedavg local fedmask; do
            directory=$out/$dataset/$algorithm-$seed
            [ -f "$directory/summary.json" ] || fedjax-masks run "${options[@]}" --out "$directory" \
                --algorithm $algorithm --dataset $dataset --model $model \
                --seed $seed --set data.seed=$seed "$@"
        done
    done
done
