#!/bin/sh
# A whole study in pieces of a few minutes: run the same command again until it says "done".
#
#   sh benchmarks/study.sh DATASET RECIPE METHODS OUT [more options of `dcamt compare`]
#
# Trains, segments and scores every method with 8 and with all labels on the cases of
# DATASET/splits.json, three seeds, and leaves in OUT:
#   compared/    tables, figures and run folders, as `dcamt compare` does
#   weights/     each run in half precision with its model card, in files of at most 16 MB
#   explained/   pseudo-label quality, disagreement and losses of the last method over the training
#
# PIECE: seconds after which training is stopped, saved and left for the next call (540).
# BIN: where `dcamt` and `python` lie (.venv/bin).
set -eu

data=$1 recipe=$2 methods=$3 out=$4
shift 4
piece=${PIECE:-540} bin=${BIN:-.venv/bin}
here=$(dirname "$0")

# Runs a command for one piece; what it was stopped in goes on at the next call.
in_pieces() {
    code=0
    timeout -s TERM "$piece" "$@" || code=$?
    [ "$code" -ne 124 ] || echo "stopped after $piece s and saved; give the same command again to go on"
    [ "$code" -eq 0 ] || exit "$code"
}

in_pieces "$bin/dcamt" compare "$data" --splits "$data/splits.json" \
    --config "$recipe" --methods "$methods" --labeled 8,all --out "$out/compared" "$@"

mkdir -p "$out/weights"
for run in "$out"/compared/runs/*; do
    kept=$out/weights/$(basename "$run")
    [ -e "$kept" ] && continue
    rm -rf "$kept.part"
    "$bin/dcamt" export "$run" --out "$kept.part" > /dev/null
    mv "$kept.part" "$kept"
done

if [ ! -e "$out/explained/explained.png" ]; then
    last=${methods##*,}
    set -- "$out"/compared/runs/*  # every run has the settings of the comparison
    in_pieces "$bin/python" "$here/explain_training.py" "$data" --splits "$data/splits.json" \
        --config "$1/config.yaml" --methods "$last" --out "$out/explained"
fi
echo "done: $out/compared/table.md, $out/weights, $out/explained"
