#!/usr/bin/env python
"""The time of a fused step as a ratio to the eager one, where another quarter of 400 tensors has a gradient at each step.

    python benchmarks/other_gradients.py [--json FILE] [--reps N]

This happens with experts of which each batch uses some, or layers that are dropped at random. Processor time of one thread: at each step
both optimizers get the same gradients and take turns at being first. `ratio` is the median of the steps, `low` and `high` the
quartiles. The first 20 steps, in which it compiles, are not counted.
"""
import argparse, json, os, tempfile, time, warnings
from pathlib import Path

os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', tempfile.mkdtemp())
warnings.filterwarnings('ignore')

import pandas as pd
import torch
from adamod_fastai.optimizer import AdaMod, DiffMod
from step_time import machine

SHAPES = [(8,8), (32,32), (64,64), (128,128), (200,200), (300,300)]

def timed(opt):
    start = time.thread_time()
    opt.step()
    return time.thread_time()-start

def measure(opt_func, shape, reps):
    torch.manual_seed(0)
    ps = [torch.nn.Parameter(torch.randn(shape)) for _ in range(400)]
    opts,ratios = [opt_func(ps, lr=1e-5, fused=f) for f in (False,True)],[]
    for i in range(20+reps):
        for p in ps: p.grad = None
        for j in torch.randperm(400)[:100]: ps[j].grad = torch.randn(shape)
        order = (0,1) if i%2 else (1,0)
        times = {k: timed(opts[k]) for k in order}
        ratios.append(times[1]/times[0])
    low,ratio,high = pd.Series(ratios[20:]).quantile([.25,.5,.75])
    return dict(optimizer=opt_func.__name__, shape='×'.join(map(str, shape)), ratio=ratio, low=low, high=high)

if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--json', metavar='FILE', help='write machine and measurements to FILE')
    parser.add_argument('--reps', type=int, default=100, help='steps, of which the median is taken')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(f, s, args.reps) for f in (AdaMod,DiffMod) for s in SHAPES]
    print(pd.DataFrame(rows).round(2).to_string(index=False))
    if args.json: Path(args.json).write_text(json.dumps(dict(machine=machine('cpu'), rows=rows), indent=1)+'\n')
