#!/usr/bin/env python
"""The time of a step on sharded parameters, as a ratio to that on the same local tensors, in each of two processes.

    python benchmarks/sharded_step.py [--json FILE] [--reps N]

Six transformer layers of width 256 under FSDP2's `fully_shard` (gloo, on the CPU): each process steps its half of every
parameter, once as the `DTensor` that it is and once as a plain tensor, in turn. The median of each process is taken, then
their mean. It is processor time, so that a busy machine does not count. `ratio` is to the same optimizer on plain tensors.
"""
import argparse, json, os, tempfile, time, warnings
from functools import partial
from statistics import mean, median

os.environ.setdefault('TORCHINDUCTOR_CACHE_DIR', tempfile.mkdtemp())

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

from adamod_fastai.optimizer import AdaMod, DiffMod
from step_time import machine

LR = 1e-5
OPTS = {'torch AdamW fused': partial(torch.optim.AdamW, lr=LR, fused=True),
        'AdaMod':            partial(AdaMod, lr=LR),
        'AdaMod fused':      partial(AdaMod, lr=LR, fused=True),
        'DiffMod':           partial(DiffMod, lr=LR),
        'DiffMod fused':     partial(DiffMod, lr=LR, fused=True)}

def timed(f):
    start = time.thread_time()
    f()
    return time.thread_time()-start

def plain(p):
    "The local shard of `p` and of its gradient, as plain tensors"
    q = nn.Parameter(p.to_local().detach().clone())
    q.grad = p.grad.to_local().clone()
    return q

def measure(rank, world, path, reps):
    torch.set_num_threads(1)
    warnings.simplefilter('error')  # a parameter falls back to the eager step
    warnings.filterwarnings('ignore', category=DeprecationWarning)
    warnings.filterwarnings('ignore', category=FutureWarning)
    dist.init_process_group('gloo', init_method=f'file://{path}/meet', rank=rank, world_size=world)
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True), 6, enable_nested_tensor=False)
    for o in (*model.layers,model): fully_shard(o)
    model(torch.randn(4, 16, 256)).square().sum().backward()
    ps = list(model.parameters())
    opts = {(k,where): f(ps if where=='sharded' else [plain(p) for p in ps]) for k,f in OPTS.items() for where in ('sharded','plain')}
    for _ in range(5):
        for o in opts.values(): o.step()
    times = {k:[] for k in opts}
    for _ in range(reps):
        for k,o in opts.items(): times[k].append(timed(o.step))
    found = [None]*world
    dist.all_gather_object(found, {k:median(v) for k,v in times.items()})
    n = sum(p.numel() for p in ps), sum(p.to_local().numel() for p in ps)
    if rank == 0: torch.save(({k:1000*mean(o[k] for o in found) for k in times},n,len(ps)), f'{path}/times')
    dist.destroy_process_group()

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--json', metavar='FILE', help='write machine and measurements to FILE')
    parser.add_argument('--reps', type=int, default=60, help='rounds, of which the median is taken')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        mp.spawn(measure, (2,path,args.reps), 2)
        ms,(n,here),tensors = torch.load(f'{path}/times')
    ratio = lambda k: round(ms[k,'sharded']/ms[k,'plain'], 2)
    rows = [dict(optimizer=k, params=n, here=here, tensors=tensors,
                 **{f'{o}_ms': round(ms[k,o], 2) for o in ('sharded','plain')}, ratio=ratio(k)) for k in OPTS]
    print(f'{n:,} parameters in {tensors} tensors, {here:,} of them here\n{"":20}{"sharded, ms":>12}{"plain, ms":>12}{"ratio":>8}')
    for o in rows: print(f'{o["optimizer"]:20}{o["sharded_ms"]:12}{o["plain_ms"]:12}{o["ratio"]:8}')
    if args.json:
        with open(args.json, 'w') as f:
            json.dump(dict(machine=machine('cpu'), processes=2, reps=args.reps, rows=rows), f, indent=1); f.write('\n')

if __name__=='__main__': main()
