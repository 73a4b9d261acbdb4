"Two processes, each with half of every batch, against one with all of it"
import os, warnings

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel
import fastai.callback.schedule  # adds fit_one_cycle to a Learner
from fastai.basics import DataLoaders, ismin_torch

from adamod_fastai.all import ClippedFraction, MemoryLength
from conftest import CASES, make_opt_func
from learners import Tensors, ordered_learner, quiet, steps, values

pytestmark = pytest.mark.slow

WORLD,BS,EPOCHS = 2,16,3
half_rows = lambda x, rank: x.view(-1,BS,*x.shape[1:])[:,rank*BS//WORLD:(rank+1)*BS//WORLD].flatten(0, 1)

def learner(opt_func, rank=None, wrap=None):
    "A Learner on whole batches, or on the part of each that belongs to `rank`"
    learn = quiet(ordered_learner(opt_func, BS, n=160, device='cpu', cbs=[MemoryLength(), ClippedFraction(every=1)]))
    if rank is None: return learn
    train,valid = (o.dataset for o in learn.dls)
    train = Tensors(*(half_rows(o, rank) for o in train.tensors))
    learn.dls = DataLoaders.from_dsets(train, valid, bs=BS//WORLD, shuffle=False, num_workers=0, device='cpu')
    learn.model = wrap(learn.model)
    return learn

def gradients(learn):
    "Fit by hand, since fastai's own loop knows nothing of sharded parameters"
    learn.create_opt()
    learn.opt.set_hypers(lr=[0.01], beta3=[0.9])
    for _ in range(EPOCHS):
        for xb,yb in learn.dls.train:
            learn.loss_func(learn.model(xb), yb).backward()
            learn.opt.step()
            learn.opt.zero_grad()
    return learn

def ddp(case, rank):
    learn = learner(make_opt_func(case), rank, DistributedDataParallel)
    learn.fit_one_cycle(EPOCHS, 0.02)
    return dict(params=values(learn.model), fractions=learn.clipped_fraction.fractions, steps=steps(learn))

def fsdp(case, rank):
    from torch.distributed.fsdp import fully_shard
    def shard(m):
        for o in m[0],m[2]: fully_shard(o)
        return fully_shard(m)
    learn = gradients(learner(make_opt_func(case), rank, shard))
    state = [(s['lr_avg'],s['grad_avg']) for _,_,s,_ in learn.opt.all_params()]
    return dict(params=[p.full_tensor().detach() for p in learn.model.parameters()], memory=[s.full_tensor() for s,_ in state],
                kept=sum(t.to_local().numel() for o in state for t in o), total=sum(t.numel() for o in state for t in o),
                steps=steps(learn))

def work(rank, path):
    torch.set_num_threads(1)
    os.environ.pop('RANK', None)    # fastai's own loader is not to split the data again
    dist.init_process_group('gloo', init_method=f'file://{path}/meet', rank=rank, world_size=WORLD)
    res = {}
    for case in CASES:
        for f in ddp,fsdp:
            with warnings.catch_warnings(record=True) as said:
                try: res[case,f.__name__] = f(case, rank)
                except Exception as e: res[case,f.__name__] = repr(e)
                else: res[case,f.__name__]['said'] = [(str(o.message), o.category) for o in said]
    torch.save(res, f'{path}/{rank}.pth')
    dist.destroy_process_group()

@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    "What each of the two processes ended with"
    path = tmp_path_factory.mktemp('ranks')
    mp.spawn(work, (path,), WORLD)
    return [torch.load(path/f'{i}.pth', weights_only=False) for i in range(WORLD)]

def of(ranks, request, name):
    res = [o[request.node.callspec.params['opt_func'],name] for o in ranks]
    for o in res: assert not isinstance(o, str), o
    for said in {said for o in res for said in o['said']}: warnings.warn(*said)
    return res

def close(a, b): torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

@pytest.mark.feature('DistributedDataParallel, two processes')
def test_ddp_is_the_whole_batch(opt_func, ranks, request):
    a,b = of(ranks, request, 'ddp')
    assert all(map(torch.equal, a['params'], b['params'])) and a['fractions'] == b['fractions']
    whole = learner(opt_func)
    whole.fit_one_cycle(EPOCHS, 0.02)
    assert a['steps'] == steps(whole) == {30}
    close(a['params'], values(whole.model))
    np.testing.assert_allclose(a['fractions'], whole.clipped_fraction.fractions, atol=0.01)
    assert 0.1 < np.mean(a['fractions']) < 0.9

@pytest.mark.skipif(not ismin_torch('2.7'), reason='fully_shard of torch 2.6 needs a GPU')
@pytest.mark.feature('FSDP2 (fully_shard), two processes', eagerly='.*')
def test_fsdp_is_the_whole_batch(opt_func, ranks, request):
    a,b = of(ranks, request, 'fsdp')
    assert all(map(torch.equal, a['params'], b['params']))
    assert a['kept']+b['kept'] == a['total'] and 0.4 < a['kept']/a['total'] < 0.6
    whole = gradients(learner(opt_func))
    assert a['steps'] == steps(whole) == {30}
    close(a['params'], values(whole.model))
    torch.testing.assert_close(a['memory'], [s['lr_avg'] for _,_,s,_ in whole.opt.all_params()], rtol=1e-3, atol=0)
