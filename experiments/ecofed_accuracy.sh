#!/usr/bin/env bash
# FedAvg, three protocols of split training, and EcoFed with three sources of pre-training; eight seeds.
# Usage: ecofed_accuracy.sh OUT [--data-dir DIR]
set -euo pipefail
out=$1
shift
data_dir=("$@")
options=(--model cnn --partition shards:5 --clients 100 --cohort 20 --rounds 50 --eval-every 25 --quiet
    --set data.examples_per_client=100 --set algorithm.lr=0.01 --set algorithm.momentum=0.9)

# run NAME DATASET SEED OPTIONS: executes a run, unless its directory holds a finished one
run() {
    local directory=$out/$2/$1-$3
    [ -f "$directory/summary.json" ] || fedjax-masks run "${options[@]}" --out "$directory" \
        --dataset "$2" --seed "$3" --set data.seed="$3" "${data_dir[@]}" "${@:4}"
}

for dataset in fashion_mnist cifar10; do
    for seed in 0 1 2 3 4 5 6 7; do
        run fedavg $dataset $seed --algorithm fedavg
        for algorithm in splitfed lgl fedgkt; do
            run $algorithm $dataset $seed --algorithm $algorithm --set algorithm.split=conv1
        done
        # Two epochs of the public images (50,000 or 40,000) have as many steps as twenty of the fractals.
        for source in "fractal 20" "public 2" "random 1"; do
            read -r source epochs <<<"$source"
            run ecofed-$source $dataset $seed --algorithm ecofed --set algorithm.split=conv1 \
                --set pretraining.source=$source --set pretraining.epochs=$epochs --set pretraining.until=conv1 \
                --set pretraining.style=gray
        done
    done
done
