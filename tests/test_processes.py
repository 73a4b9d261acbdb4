"Two processes, each with half of every batch, against one with all of it"
import os, warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
import fastai.callback.schedule  # adds fit_one_cycle to a Learner
from fastai.basics import DataLoader, DataLoaders, L, ismin_torch, noop

from adamod_fastai.all import (AdaMod, ClippedFraction, DeepMemory, DiffGrad, DiffMod, FusedOptimizer, MemoryLength, ModOptimizer,
                               RateHistogram)
from conftest import CASES, make_opt_func
from learners import Tensors, ordered_learner, quiet, same, steps, values
from new_process import METHOD
from test_costs import page_cost

pytestmark = pytest.mark.slow

WORLD,BS,EPOCHS = 2,16,3
FSDP = ismin_torch('2.7')
half_rows = lambda x, rank: x.view(-1,BS,*x.shape[1:])[:,rank*BS//WORLD:(rank+1)*BS//WORLD].flatten(0, 1)

def learner(opt_func, rank=None, wrap=None, *cbs):
    "A Learner on whole batches, or on the part of each that belongs to `rank`; all parameters decay, so it takes one kernel"
    cbs = [MemoryLength(), ClippedFraction(every=1), *cbs]
    learn = quiet(ordered_learner(opt_func, BS, n=160, device='cpu', wd_bn_bias=True, cbs=cbs))
    if rank is None: return learn
    train,valid = (o.dataset for o in learn.dls)
    train = Tensors(*(half_rows(o, rank) for o in train.tensors))
    learn.dls = DataLoaders(DataLoader(train, bs=BS//WORLD, num_workers=0, device='cpu'), learn.dls.valid)
    learn.model = wrap(learn.model)
    return learn

def ddp(case, rank, path, **kwargs):
    learn = learner(make_opt_func(case), rank, partial(DistributedDataParallel, **kwargs))
    learn.fit_one_cycle(EPOCHS, 0.02)
    return dict(params=values(learn.model), fractions=learn.clipped_fraction.fractions, steps=steps(learn))

def views(case, rank, path): return ddp(case, rank, path, static_graph=True, gradient_as_bucket_view=True)

def shard(m, **kwargs):
    from torch.distributed.fsdp import fully_shard
    for o in m[0],m[2]: fully_shard(o, **kwargs)
    return fully_shard(m, **kwargs)

def shard_columns(m):
    "As `shard`, but weights by their second dimension"
    from torch.distributed.tensor import Shard
    return shard(m, shard_placement_fn=lambda p: Shard(p.ndim-1))

def whole(o):
    "All of a tensor, wherever it lies"
    return o.detach().full_tensor() if hasattr(o, 'full_tensor') else o.detach().clone()

def whole_state(opt): return [{k:whole(v) if torch.is_tensor(v) else v for k,v in s.items()} for _,_,s,_ in opt.all_params()]
def saved(learn): return dict(model=learn.model.state_dict(), opt=learn.opt.state_dict())

def go_on(learn):
    "One more epoch, from the state that the optimizer has"
    learn.fit(1, 0.01)
    return [whole(p) for p in learn.model.parameters()]

def fsdp(case, rank, path):
    import torch.distributed.checkpoint as dcp
    learn = learner(make_opt_func(case), rank, shard, RateHistogram(every=1))
    learn.fit_one_cycle(EPOCHS, 0.02)
    state = [(s['lr_avg'],s['grad_avg']) for _,_,s,_ in learn.opt.all_params()]
    res = dict(params=[whole(p) for p in learn.model.parameters()], state=whole_state(learn.opt), steps=steps(learn),
               kept=sum(t.to_local().numel() for o in state for t in o), total=sum(t.numel() for o in state for t in o),
               fractions=learn.clipped_fraction.fractions, layers=learn.clipped_fraction.layer_fractions,
               hists=learn.rate_histogram.histograms)
    dcp.save(saved(learn), checkpoint_id=f'{path}/{case}')
    other = learner(make_opt_func(case), rank, shard_columns)
    other.fit(1, 0.01)      # a state of this split, to load into
    loaded = saved(other)
    dcp.load(loaded, checkpoint_id=f'{path}/{case}')
    other.model.load_state_dict(loaded['model'])
    other.opt.load_state_dict(loaded['opt'])
    places = [p.placements for p in learn.model.parameters()],[p.placements for p in other.model.parameters()]
    return dict(res, loaded=whole_state(other.opt), split=places[0]!=places[1], later=go_on(learn), later_loaded=go_on(other))

def by_norm(p, lr, **kwargs): p.data.sub_(p.grad.data, alpha=lr/p.grad.data.norm().clamp(min=1e-6).item())
def by_numel(p, lr, **kwargs): p.data.sub_(p.grad.data, alpha=lr*p.numel())
def elementwise(p, lr, **kwargs): p.data.sub_(p.grad.data, alpha=lr)
def in_turn(p, lr, twice=None, **kwargs):
    p.data.sub_(p.grad.data, alpha=2*lr if twice else lr)
    return {'twice': None if twice else True}
RULES = by_norm,by_numel,elementwise,in_turn

def rule(f, opt_class=ModOptimizer, rank=None):
    "What the parameters are after a fit with a step function of one's own"
    learn = learner(partial(opt_class, cbs=f), rank, shard)
    learn.remove_cbs(L(MemoryLength, ClippedFraction))
    learn.fit(1, 0.001)
    return [whole(p) for p in learn.model.parameters()]

OPTS,DTYPES = {f.__name__: f for f in (AdaMod,DiffMod,DiffGrad,DeepMemory)},(torch.float32,torch.bfloat16)

def held(opt_func, dtype, wrap=noop):
    "How many parameters there are, and the bytes that this process holds for them"
    model = wrap(nn.Sequential(nn.Linear(30,16), nn.Tanh(), nn.Linear(16,2)).to(dtype))
    opt = opt_func(model.parameters(), lr=0.01)
    for _ in range(2):
        for p in model.parameters(): p.grad = torch.ones_like(p)
        opt.step()
    size = lambda *o: sum((t.to_local() if hasattr(t, 'to_local') else t).untyped_storage().nbytes() for t in o if torch.is_tensor(t))
    ps = list(model.parameters())
    return sum(p.numel() for p in ps),dict(parameter=size(*ps), gradient=size(*(p.grad for p in ps)),
                                           state=size(*(v for p in ps for v in opt.state[p].values())))

def uneven(opt_func, wrap=noop):
    "Three steps with parameters that cannot be halved: of the last bias, one process has nothing"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5,3), nn.Tanh(), nn.Linear(3,1))
    grads = [[torch.randn_like(p) for p in model.parameters()] for _ in range(3)]
    model = wrap(model)
    opt = opt_func(model.parameters(), lr=0.01, follow_lr=True)     # as in a Learner: with the same kernel
    for gs in grads:
        for p,g in zip(model.parameters(), gs): p.grad = g if wrap is noop else distribute(g, p)
        opt.step()
    return [whole(p) for p in model.parameters()]

def distribute(g, p):
    from torch.distributed.tensor import distribute_tensor
    return distribute_tensor(g, p.device_mesh, p.placements)

def work(rank, path):
    torch.set_num_threads(1)
    os.environ.pop('RANK', None)    # fastai's own loader is not to split the data again
    dist.init_process_group('gloo', init_method=f'file://{path}/meet', rank=rank, world_size=WORLD)
    res = {}
    for case in CASES:
        for f in (ddp,views,fsdp) if FSDP else (ddp,views):
            with warnings.catch_warnings(record=True) as said:
                try: res[case,f.__name__] = f(case, rank, path)
                except Exception as e: res[case,f.__name__] = repr(e)
                else: res[case,f.__name__]['said'] = [(str(o.message), o.category) for o in said]
    if FSDP:
        res |= {(f.__name__,o.__name__): rule(f, o, rank) for f in RULES for o in (ModOptimizer,FusedOptimizer)}
        res |= {('uneven',case): uneven(make_opt_func(case), shard) for case in CASES}
        res |= {('held',k,d): held(f, d, shard) for k,f in OPTS.items() for d in DTYPES}
    torch.save(res, f'{path}/{rank}.pth')
    dist.destroy_process_group()

@pytest.fixture(scope='module')
def path(tmp_path_factory): return tmp_path_factory.mktemp('ranks')

@pytest.fixture(scope='module')
def ranks(path):
    "What each of the two processes ended with"
    mp.start_processes(work, (path,), WORLD, start_method=METHOD)
    return [torch.load(path/f'{i}.pth', weights_only=False) for i in range(WORLD)]

def of(ranks, request, name):
    res = [o[request.node.callspec.params['opt_func'],name] for o in ranks]
    for o in res: assert not isinstance(o, str), o
    for said in {said for o in res for said in o['said']}: warnings.warn(*said)
    return res

def close(a, b): torch.testing.assert_close(a, b, rtol=0, atol=1e-5)

def is_whole_batch(a, b, opt_func, *cbs):
    "Did two processes do as one does?"
    assert all(map(torch.equal, a['params'], b['params'])) and a['fractions'] == b['fractions']
    one = learner(opt_func, None, None, *cbs)
    one.fit_one_cycle(EPOCHS, 0.02)
    assert a['steps'] == steps(one) == {30}
    close(a['params'], values(one.model))
    np.testing.assert_allclose(a['fractions'], one.clipped_fraction.fractions, atol=0.01)
    assert 0.1 < np.mean(a['fractions']) < 0.95
    return one

@pytest.mark.feature('DistributedDataParallel, two processes')
def test_ddp_is_the_whole_batch(opt_func, ranks, request): is_whole_batch(*of(ranks, request, 'ddp'), opt_func)

@pytest.mark.feature('DistributedDataParallel: static_graph, gradient_as_bucket_view')
def test_ddp_with_gradients_that_are_views(opt_func, ranks, request): is_whole_batch(*of(ranks, request, 'views'), opt_func)

needs_fsdp = pytest.mark.skipif(not FSDP, reason='fully_shard of torch 2.6 needs a GPU')

@needs_fsdp
@pytest.mark.feature('FSDP2 (fully_shard), two processes')
def test_fsdp_is_the_whole_batch(opt_func, ranks, request):
    a,b = of(ranks, request, 'fsdp')
    assert a['kept']+b['kept'] == a['total'] and 0.4 < a['kept']/a['total'] < 0.6
    one = is_whole_batch(a, b, opt_func, RateHistogram(every=1))
    torch.testing.assert_close([o['lr_avg'] for o in a['state']], [s['lr_avg'] for _,_,s,_ in one.opt.all_params()], rtol=1e-3, atol=0)
    for k,want in dict(layers=one.clipped_fraction.layer_fractions, hists=one.rate_histogram.histograms).items():
        np.testing.assert_array_equal(a[k], b[k])
        np.testing.assert_allclose(a[k], want, atol=0.04)

@needs_fsdp
@pytest.mark.feature('FSDP2: checkpoint, loaded with another split and into one process')
def test_checkpoint_of_shards(opt_func, ranks, path, request):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
    a,b = of(ranks, request, 'fsdp')
    case = request.node.callspec.params['opt_func']
    assert a['split'] and same(a['loaded'], a['state'])
    close(a['later_loaded'], a['later'])
    dcp_to_torch_save(path/case, path/f'{case}.pth')
    sd = torch.load(path/f'{case}.pth', weights_only=False)
    one = learner(opt_func)
    one.create_opt()
    one.model.load_state_dict(sd['model'])
    one.opt.load_state_dict(sd['opt'])
    assert same(whole_state(one.opt), a['state'])
    close(go_on(one), a['later'])

@needs_fsdp
@pytest.mark.parametrize('case', CASES)
def test_shards_of_different_sizes(case, ranks): close(ranks[0]['uneven',case], uneven(make_opt_func(case)))

@needs_fsdp
@pytest.mark.parametrize('opt_class', [ModOptimizer,FusedOptimizer])
@pytest.mark.parametrize('f', RULES)
def test_step_functions_of_ones_own_on_shards(f, opt_class, ranks): close(ranks[0][f.__name__,opt_class.__name__], rule(f))

@needs_fsdp
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('opt_func', OPTS)
def test_costs(opt_func, dtype, ranks):
    cost = page_cost()
    for found,n in (held(OPTS[opt_func], dtype),1), *((o['held',opt_func,dtype],2) for o in ranks):
        numel,sizes = found
        want = cost(OPTS[opt_func], dtype, n)
        assert sizes == {k: numel*want[k] for k in sizes}
