#!/usr/bin/env bash
# MPFL's masks against their controls, by size of the net, data and rounds, and by start of the weights:
#
#     bash experiments/mpfl_ladder.sh NAME FOLDER
#
# appends to FOLDER/NAME.jsonl; a stopped run goes on where it was. Then:
#
#     python experiments/mpfl_sparsity.py gaps FOLDER/public-{small,middle,large,vgg11}.jsonl --out FIGURE.png
#
# The published start is pre-trained. public: on as many examples of the data set as the clients have, none of
# which a client has; fractal: on images of fractals, not in-domain; random: not pre-trained. Published search:
# ten local epochs in an iteration. Published heterogeneity: corrupted clients. Published score: central.
set -euo pipefail
name=$1 folder=$(realpath -m "$2")
cd "$(dirname "$0")"
small=(--examples 200 --rounds 8 --public 2000)
middle=(--examples 400 --rounds 12 --public 4000)
large=(--examples 600 --rounds 16 --public 6000 --model lenet)
vgg11=(--examples 400 --rounds 12 --public 4000 --model vgg11-narrow --dataset cifar10)
corrupted=(--partition iid+corrupt_pixels:0+corrupt_labels:1)
iterations=(7 9)
halves=("0 1 2" "3 4")
case $name in
random-small) settings=("${small[@]}") ;;
fractal-small) settings=("${small[@]}" --pretrained fractal) ;;
public-small) settings=("${small[@]}" --pretrained public) iterations=(3 5 7 9) ;;
search-small) settings=("${small[@]}" --pretrained public --search-epochs 10) ;;
corrupted-small) settings=("${small[@]}" --pretrained public --search-epochs 10 "${corrupted[@]}") ;;
central-small)
    settings=("${small[@]}" --pretrained public --search-epochs 10 "${corrupted[@]}" --score central)
    ;;
public-middle) settings=("${middle[@]}" --pretrained public) halves=("0 1" "2 3") ;;
public-large) settings=("${large[@]}" --pretrained public) halves=("0 1" "2 3") ;;
public-vgg11) settings=("${vgg11[@]}" --pretrained public) halves=("0 1" "2 3") ;;
*) echo "error: $name: must be a setting of this script" >&2 && exit 2 ;;
esac
settings+=(--optimizer sgd --lr 0.1 --iterations "${iterations[@]}" --out "$folder/$name.jsonl")
settings+=(--compiled "$folder/compiled" --curves mpfl fedavg-mask fedavg-then-prune initial random inverted)
mkdir -p "$folder"
# Two processes, since a single one does not fill two cores.
for seeds in "${halves[@]}"; do
    # shellcheck disable=SC2086
    python mpfl_sparsity.py run "${settings[@]}" --seeds $seeds &
done
wait -n
wait -n
