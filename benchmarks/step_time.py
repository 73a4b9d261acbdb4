#!/usr/bin/env python
"""The time of one optimizer step, as a ratio to torch's fused AdamW, and the memory it takes.

    python benchmarks/step_time.py [--device cpu|cuda] [--json FILE] [--shapes NAME ...] [--reps N] [--against REVISION]

Every optimizer steps the same parameters in turn, in each round in another order, and the medians of the rounds are compared,
so that a busy machine slows all of them alike, and none always finds what the same one left in the cache. `floor` is the ratio
of what must be read and written: 7 values per element with AdamW, 9 with AdaMod (the running average too), 11 with DiffMod
(the previous gradient too). `DiffMod traffic` reads and writes those 11 and computes next to nothing, compiled in the same way:
the floor in practice. `GB/s` is what must be read and written by the time. `first` is the first two steps, in which the fused
optimizers compile: each shape anew, the first one without anything cached. `extra` is the most memory that is held during a step
beside parameters, gradients and state. `--against` lets the fused optimizers of an earlier revision of this repository take turns
with the others.
"""
import argparse, importlib, io, json, os, subprocess, sys, tarfile, tempfile, warnings
from functools import partial
from pathlib import Path

os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', tempfile.mkdtemp())
warnings.filterwarnings('ignore')

import torch
from fastai.optimizer import Adam
from pytorch_optimizer import AdaMod as PublishedAdaMod

from adamod_fastai import fused
from adamod_fastai.check import base_opt as BASE, bench_params, bench_shapes as SHAPES, machine, timed, times_in_turn
from adamod_fastai.optimizer import AdaMod, DiffMod

LR = 1e-5

def traffic(p, a=None, b=None, c=None, d=None, **kwargs):
    "Read and write as many values as DiffMod, and compute next to nothing"
    g = p.grad.data
    p.data.add_(g)
    return {k:torch.zeros_like(g) if o is None else o.add_(g) for k,o in dict(a=a, b=b, c=c, d=d).items()}

FLOORS = dict(AdaMod=9/7, DiffMod=11/7)
OPTS = {BASE:                  partial(torch.optim.AdamW, lr=LR, fused=True),
        'torch AdamW foreach': partial(torch.optim.AdamW, lr=LR, foreach=True),
        'torch AdamW single':  partial(torch.optim.AdamW, lr=LR, foreach=False),
        'fastai Adam':         partial(Adam, lr=LR),
        'fastai Adam fused':   fused.fused(partial(Adam, lr=LR)),
        'pytorch_optimizer AdaMod': partial(PublishedAdaMod, lr=LR, weight_decay=1e-2),
        'AdaMod':        partial(AdaMod, lr=LR),
        'AdaMod fused':  partial(AdaMod, lr=LR, fused=True),
        'DiffMod':       partial(DiffMod, lr=LR),
        'DiffMod fused': partial(DiffMod, lr=LR, fused=True),
        'DiffMod traffic': partial(fused.FusedOptimizer, cbs=traffic, lr=LR)}

def add_earlier(revision):
    "The fused optimizers of an earlier `revision`, under their names with it"
    path = tempfile.mkdtemp()
    files = subprocess.check_output(['git','archive',revision,'adamod_fastai'], cwd=Path(__file__).parent.parent)
    with tarfile.open(fileobj=io.BytesIO(files)) as f: f.extractall(path, filter='data')
    Path(path, 'adamod_fastai').rename(Path(path, 'earlier'))
    sys.path.insert(0, path)
    earlier = importlib.import_module('earlier.optimizer')
    for k in 'AdaMod','DiffMod': OPTS[f'{k} fused, {revision}'] = partial(getattr(earlier, k), lr=LR, fused=True)

class Memory:
    "What is allocated within a `with` block: `peak` and `held`, in bytes"
    def __init__(self, device): self.device = device
    def __enter__(self):
        if self.device=='cuda':
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            self.prof = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
            self.prof.__enter__()
        return self
    def __exit__(self, *args):
        if self.device=='cuda':
            self.peak,self.held = (f()-self.start for f in (torch.cuda.max_memory_allocated, torch.cuda.memory_allocated))
            return
        self.prof.__exit__(*args)
        self.peak = self.held = 0
        for o in sorted((o for o in self.prof.profiler.kineto_results.events() if o.name()=='[memory]'), key=lambda o: o.start_ns()):
            self.held += o.nbytes()
            self.peak = max(self.peak, self.held)

def state_bytes(opt):
    return sum(v.numel()*v.element_size() for s in opt.state.values() for v in s.values() if torch.is_tensor(v) and v.dim())

def extra_memory(opt_func, params, device):
    with Memory(device) as before:
        opt = opt_func(params)
        for _ in range(3): opt.step()
    with Memory(device) as during: opt.step()
    return max(0, before.held-state_bytes(opt)) + during.peak

def syncs(opt):
    "Does a step wait for the GPU?"
    torch.cuda.set_sync_debug_mode('error')
    try: opt.step()
    except RuntimeError as e: return str(e).splitlines()[0]
    finally: torch.cuda.set_sync_debug_mode('default')

def measure(name, device, reps):
    params = bench_params(name, device)
    fused.step._kernels.clear()
    opts = {k:f(params) for k,f in OPTS.items()}
    first = {k:timed(o.step, device)+timed(o.step, device) for k,o in opts.items()}
    for _ in range(3):
        for o in opts.values(): o.step()
    ms = times_in_turn(opts, device, reps)
    if device=='cuda':
        for k in ('AdaMod fused','DiffMod fused'): print(f'{name}, {k}: host synchronisation in a step: {syncs(opts[k]) or "none"}')
    del opts
    n = sum(p.numel() for p in params)
    floor = {k:FLOORS.get(k.removeprefix('pytorch_optimizer ').split()[0], 1) for k in ms}
    return [dict(shape=name, params=n, tensors=len(params), optimizer=k, ms=round(ms[k], 3), ratio=round(ms[k]/ms[BASE], 3),
                 floor=round(floor[k], 2), gb_s=round(floor[k]*7*4*n/ms[k]/1e6, 1), first_s=round(first[k], 2),
                 extra_mb=round(extra_memory(OPTS[k], params, device)/2**20, 2), params_mb=round(n*4/2**20, 1)) for k in ms]

def table(rows, col, head, fmt='{:.2f}'):
    shapes = list(dict.fromkeys(o['shape'] for o in rows))
    print(f'\n{head}\n' + ' '*26 + ''.join(f'{s:>16}' for s in shapes))
    found = {(o['shape'],o['optimizer']): fmt.format(o[col]) for o in rows}
    for k in OPTS: print(f'{k:26}' + ''.join(f'{found[s,k]:>16}' for s in shapes))
    if col=='ratio':
        for k,v in FLOORS.items(): print(f'{k+" floor":26}' + f'{v:>16.2f}'*len(shapes))

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--device', choices=('cpu','cuda'), default='cpu')
    parser.add_argument('--json', metavar='FILE', help='write machine and measurements to FILE')
    parser.add_argument('--shapes', nargs='+', choices=SHAPES, default=list(SHAPES), metavar='NAME', help=', '.join(SHAPES))
    parser.add_argument('--reps', type=int, default=60, help='rounds, of which the median is taken')
    parser.add_argument('--against', metavar='REVISION', help='an earlier revision, such as 3592636')
    args = parser.parse_args()
    if args.against: add_earlier(args.against)
    rows = []
    for name in args.shapes:
        print(f'{name} ...', file=sys.stderr)
        rows += measure(name, args.device, args.reps)
    print(', '.join(f'{k} {v}' for k,v in machine(args.device).items()))
    table(rows, 'ratio', f'Time of a step, {BASE} = 1')
    table(rows, 'ms', 'Time of a step, ms')
    table(rows, 'gb_s', 'What has to be read and written, GB/s', '{:.1f}')
    table(rows, 'first_s', 'The first two steps, s')
    table(rows, 'extra_mb', 'Peak extra memory, MiB')
    if args.json:
        rows = [o for o in rows if not o['optimizer'].endswith(f', {args.against}')]
        with open(args.json, 'w') as f: json.dump(dict(machine=machine(args.device), reps=args.reps, rows=rows), f, indent=1); f.write('\n')

if __name__=='__main__': main()
