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
                      DataLoader(Tensors(x[400:],y[400:]), bs=bs, num_workers=0))
    model = nn.Sequential(nn.Linear(x.shape[1],16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16,2))
    kwargs = {'metrics': accuracy, 'splitter': two_groups, **kwargs}
    return Learner(dls, model, nn.CrossEntropyLoss(), opt_func=opt_func, **kwargs)

def quiet(learn):
    "`learn` without its progress bar and its table, for the rest of the test"
    learn.logger = noop
    if hasattr(learn, 'progress'): learn.remove_cb(learn.progress)
    return learn
