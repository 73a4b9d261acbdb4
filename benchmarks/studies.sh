#!/usr/bin/env bash
# The runs that the pages read: `bash benchmarks/studies.sh [STUDY ...]`, all without one; hours on one core.
# Runs are kept in benchmarks/runs, so it can be interrupted, and their tables in nbs/results. The runs of the tables that are there
# are not in the repository: in a clone a study trains all of its runs anew.
set -euo pipefail
cd "$(dirname "$0")/.."
study() { out=$1; shift; echo "$out"; adamod-compare --jobs "${JOBS:-1}" --out "benchmarks/runs/$out" "$@" >/dev/null; keep "$out"; }
keep() { case $1 in warmup/transformer|*/own-weights) python benchmarks/kept.py "$1+losses" ;; *) python benchmarks/kept.py "$1" ;; esac; }
more=benchmarks/chosen_on.py

memories=0.02,0.05,0.1,0.15,0.3,1,3
ten=AdaMod,DiffMod,AdaMod-1000,DiffMod-1000,DeepMemory,DiffGrad,Adam,RAdam,ranger,SGD

warmup() { # tutorial "Is a warmup needed?"
    study warmup/transformer --task transformer --lrs 3e-4,1e-3,3e-3,1e-2 --seeds 5 --opts Adam,RAdam,AdaMod,DiffMod,AdaMod-1000
    study warmup/transformer --task transformer --lrs 1e-3,3e-3,1e-2 --seeds 5 --opts Adam --warmup 0.1,0.3,0.5
    study warmup/text --task $more:text_learner --schedule flat --lrs 1e-3,3e-3,1e-2 --opts Adam,RAdam,AdaMod-1000 # AdaMod at a constant learning rate is in memory_text
    study warmup/text --task $more:text_learner --schedule flat --lrs 1e-3,3e-3,1e-2 --opts Adam --warmup 0.1,0.3,0.5
    study warmup/own-weights --task benchmarks/own_weights.py:own_weights_learner --schedule flat --lrs 3e-3,1e-2 --seeds 1 --opts Adam,AdaMod
}
finish() { echo finish; python benchmarks/finish.py; } # tutorial "Does finishing with SGD gain anything?"
fine_tune() { echo fine_tune; python benchmarks/fine_tune.py; } # tutorial "Does it help my `fine_tune`?"
rare_rows() { echo nbs/rare_rows.csv; python benchmarks/rare_rows.py; } # page "Compatibility"
memory_digits()   { for o in flat one_cycle; do study memory/digits   --task digits   --schedule $o --lrs 1e-4,1e-3,1e-2,1e-1 --opts Adam,AdaMod-1000 --memory $memories --seeds 5; done; }
memory_cancer()   { for o in flat one_cycle; do study memory/cancer   --task $more:cancer_learner   --schedule $o --lrs 1e-4,1e-3,1e-2,1e-1 --opts Adam,AdaMod-1000 --memory $memories --seeds 5 --epochs 8; done; }
memory_densenet() { for o in flat one_cycle; do study memory/densenet --task $more:densenet_learner --schedule $o --lrs 1e-3,1e-2,1e-1      --opts Adam,AdaMod-1000 --memory $memories --seeds 5 --epochs 8; done; }
memory_text() {
    for o in flat one_cycle; do study memory/text --task $more:text_learner --schedule $o --lrs 1e-3,3e-3,1e-2 --opts Adam,AdaMod-1000 --memory $memories --seeds 5; done
    study memory/text --task $more:text_learner --schedule one_cycle --lrs 3e-4 --opts Adam,AdaMod-1000 --memory 0.15 --seeds 5
    study memory/text --task $more:text_learner --schedule one_cycle --lrs 3e-3,1e-2 --opts AdaMod --memory 1 --seeds 5 # as the page advises
}
rates()   { study rates/digits --task digits --lrs 1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1,1 --seeds 5 --opts $ten; } # tutorial "Which learning rate?"
lr_find() { echo lr_find; python benchmarks/lr_find.py; } # the same

for o in "${@:-warmup finish fine_tune rare_rows memory_digits memory_cancer memory_densenet memory_text rates lr_find}"; do for s in $o; do $s; done; done
