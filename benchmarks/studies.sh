#!/usr/bin/env bash
# The runs that the tutorials draw from, a folder of nbs/results each: `bash benchmarks/studies.sh [STUDY ...]`, all without one.
# Hours on one core; what is there already is not run again, so it can be interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."
study() { out=nbs/results/$1; shift; echo "$out"; adamod-compare --out "$out" "$@" >/dev/null; }

memories=0.02,0.05,0.1,0.15,0.3,1,3
eight=AdaMod,DiffMod,DiffGrad,DeepMemory,Adam,RAdam,ranger,SGD
rates=1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1,1

warmup() { # tutorial "No warm-up needed"
    study warmup --task text --schedule flat --lrs 1e-3,3e-3,1e-2 --opts AdaMod,DiffMod,Adam,RAdam
    study warmup --task text --schedule flat --lrs 1e-3,3e-3,1e-2 --opts Adam --warmup 0.1,0.3,0.5
}
switch() { # tutorial "AdaMod, then SGD"
    echo nbs/results/switch; python benchmarks/switch.py nbs/results/switch
}
memory_digits()   { for o in flat one_cycle; do study memory/digits   --task digits   --schedule $o --lrs 1e-4,1e-3,1e-2,1e-1 --opts Adam,AdaMod --memory $memories --seeds 5; done; }
memory_cancer()   { for o in flat one_cycle; do study memory/cancer   --task cancer   --schedule $o --lrs 1e-4,1e-3,1e-2,1e-1 --opts Adam,AdaMod --memory $memories --seeds 5 --epochs 8; done; }
memory_densenet() { for o in flat one_cycle; do study memory/densenet --task densenet --schedule $o --lrs 1e-3,1e-2,1e-1      --opts Adam,AdaMod --memory $memories --seeds 5 --epochs 8; done; }
memory_text() {
    for o in flat one_cycle; do study memory/text --task text --schedule $o --lrs 1e-3,3e-3,1e-2 --opts Adam,AdaMod --memory $memories --seeds 5; done
    study memory/text --task text --lrs 3e-4 --opts Adam,AdaMod --memory 0.15 --seeds 5
}
rates_digits() { for o in "$eight" "AdaMod,DiffMod --memory 0.1,0.15"; do study rates/digits --task digits --lrs $rates --seeds 5 --opts $o; done; }
rates_text()   { for o in "$eight" "AdaMod,DiffMod --memory 0.1"; do study rates/text   --task text   --lrs 1e-4,1e-3,3e-3,1e-2,3e-2,1e-1,1 --seeds 2 --opts $o; done; }

for o in "${@:-warmup switch memory_digits memory_cancer memory_densenet memory_text rates_digits rates_text}"; do for s in $o; do $s; done; done
