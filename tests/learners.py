"Small real Learners that several tests share"
import torch
from torch import nn
from torch.utils.data import TensorDataset
from fastai.basics import DataLoader, DataLoaders, L, Learner, accuracy, noop, set_seed
from sklearn.datasets import load_breast_cancer

class Tensors(TensorDataset):
    "A `TensorDataset` that a Learner can export"
    def new_empty(self): return Tensors(*(o[:0] for o in self.tensors))

def two_groups(m): return L(m[:2], m[2:]).map(lambda o: list(o.parameters()))

def cancer_learner(opt_func, seed=0, bs=16, shuffle=True, **kwargs):
    "A batch-norm network in two parameter groups on scikit-learn's breast cancer data"
    set_seed(seed)
    x,y = load_breast_cancer(return_X_y=True)
    x = torch.tensor((x-x.mean(0))/x.std(0), dtype=torch.float32)
    y = torch.tensor(y)
    dls = DataLoaders(DataLoader(Tensors(x[:400],y[:400]), bs=bs, shuffle=shuffle, num_workers=0),
                      DataLoader(Tensors(x[400:],y[400:]), bs=len(x), num_workers=0))
    model = nn.Sequential(nn.Linear(x.shape[1],16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16,2))
    kwargs = {'metrics': accuracy, 'splitter': two_groups, **kwargs}
    return Learner(dls, model, nn.CrossEntropyLoss(), opt_func=opt_func, **kwargs)

def ordered_learner(opt_func, bs=16, n=384, seed=0, device=None, **kwargs):
    "The same data in order, `n` items of it, and a network without batch norm: batches can be split and joined"
    learn = cancer_learner(opt_func, seed)
    train,valid = (Tensors(*o.dataset[:n]) for o in learn.dls)
    dls = DataLoaders(*(DataLoader(o, bs=k, num_workers=0, device=device) for o,k in ((train,bs),(valid,len(valid)))))
    model = nn.Sequential(nn.Linear(30,16), nn.Tanh(), nn.Linear(16,2))
    return Learner(dls, model, nn.CrossEntropyLoss(), opt_func=opt_func, **{'metrics': accuracy, **kwargs})

def steps(learn):
    "How many steps each parameter has taken"
    return {learn.opt.state[p].get('step', 0) for p in learn.model.parameters()}

def values(m):
    "A copy of the parameters of `m`"
    return [p.detach().clone() for p in m.parameters()]

def state_of(opt):
    "A copy of the state of `opt`, one dict per parameter"
    return [{k: v.clone() if torch.is_tensor(v) else v for k,v in s.items()} for _,_,s,_ in opt.all_params()]

def same(a, b):
    "Whether `a` and `b` are equal to the bit: tensors, numbers, lists and dicts of them"
    if isinstance(a, dict): return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list,tuple,L)): return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b

def used(opt):
    "The hypers of the last step of `opt`, for each group"
    return getattr(opt, 'used', None) or opt.hypers

def quiet(learn):
    "`learn` without its progress bar and its table, for the rest of the test"
    learn.logger = noop
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn
