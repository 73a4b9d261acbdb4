#!/usr/bin/env python
"""What each trick of the fused step gives: the time of a step without it, as a ratio to the time with it.

    python benchmarks/tricks.py [--json FILE] [--shapes NAME ...] [--reps N]

Every way steps the same parameters in turn, on one thread, and the medians of the processor's time are compared: above 1, the trick pays.
"""
import argparse, json, os, sys, tempfile, time, warnings
from contextlib import contextmanager
from statistics import median

os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', tempfile.mkdtemp())
warnings.filterwarnings('ignore')

import torch

from adamod_fastai import fused
from adamod_fastai.optimizer import AdaMod, DiffMod
from adamod_fastai.check import bench_params, bench_shapes as SHAPES, machine
from step_time import LR

@contextmanager
def changed(obj, name, val):
    old = getattr(obj, name)
    setattr(obj, name, val)
    try: yield
    finally: setattr(obj, name, old)

def guarded(compile):
    "`torch.compile` without a way to compile ahead of time, so that every call is checked"
    def f(*args, **kwargs):
        fn = compile(*args, **kwargs)
        return lambda *args: fn(*args)
    return f

TRICKS = {'sigmoid written out': lambda: changed(fused.kernel, '_sigmoid', torch.sigmoid),
          'calls without checks': lambda: changed(torch, 'compile', guarded(torch.compile)),
          'small tensors together': lambda: changed(fused.buckets, 'sizes', dict(cpu=fused.buckets.Sizes(2, 4)))}

def opt_of(opt_func, params):
    "An optimizer that has compiled and planned its step, and what it compiled"
    fused.step._kernels = {}
    opt = opt_func(params, lr=LR, fused=True)
    for _ in range(3): opt.step()
    return opt,fused.step._kernels

def measure(name, opt_func, reps):
    params = bench_params(name, 'cpu')
    opts = {None: opt_of(opt_func, params)}
    for k,f in TRICKS.items():
        with f(): opts[k] = opt_of(opt_func, params)
    times = {k:[] for k in opts}
    for _ in range(reps):
        for k,(o,fused.step._kernels) in opts.items():
            start = time.process_time()
            o.step()
            times[k].append(time.process_time()-start)
    ms = {k:1000*median(v) for k,v in times.items()}
    return [dict(shape=name, optimizer=opt_func.__name__, trick=k, ratio=round(ms[k]/ms[None], 3)) for k in TRICKS]

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', metavar='FILE', help='write machine and measurements to FILE')
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES), metavar='NAME', help=', '.join(SHAPES))
    parser.add_argument('--reps', type=int, default=60, help='rounds, of which the median is taken')
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [o for name in args.shapes for f in (AdaMod,DiffMod) for o in measure(name, f, args.reps)]
    for o in rows: print(f"{o['optimizer']:10}{o['shape']:18}{o['trick']:26}{o['ratio']:.2f}")
    if args.json:
        with open(args.json, 'w') as f: json.dump(dict(machine=machine('cpu'), reps=args.reps, rows=rows), f, indent=1); f.write('\n')

if __name__=='__main__': main()
