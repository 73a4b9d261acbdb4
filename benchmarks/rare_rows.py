"""What averaging does to rare embedding rows: `python benchmarks/rare_rows.py [FILE]`

Trains a tabular and a text model with Adam, with AdaMod, and with `skip_zeros=True`; six learning rates, two seeds, averaging
over 15% of the run, AdaMod's default, or over 1000 batches. Writes a row for each run.
"""
import re, sys, warnings
from functools import partial
from pydoc_data.topics import topics

warnings.filterwarnings('ignore')

import numpy as np
import pandas as pd
import torch
from torch import nn
from sklearn.datasets import load_digits
from fastai.basics import Adam, DataLoaders, Learner, accuracy, noop, set_seed
from fastai.tabular.all import CategoryBlock, Categorify, TabularDataLoaders, tabular_learner
from torch.utils.data import TensorDataset

from adamod_fastai.all import AdaMod

EPOCHS,LRS,SEEDS = 5,(1e-3,1e-2,3e-2,1e-1,3e-1,1.),(0,1)

def patterns():
    "Digits, each of their eight rows of pixels as a category: three levels of grey, so thousands of patterns and most of them rare"
    x,y = load_digits(return_X_y=True)
    rows = (x//6).astype(int).reshape(-1,8,8)
    df = pd.DataFrame({f'row{i}': [''.join(map(str, o)) for o in rows[:,i]] for i in range(8)}).assign(digit=y)
    return df, TabularDataLoaders.from_df(df, cat_names=[f'row{i}' for i in range(8)], y_names='digit', y_block=CategoryBlock(),
                                          procs=[Categorify], valid_idx=list(range(1400,1797)), bs=64, num_workers=0)

def tabular(opt_func, df, dls):
    return tabular_learner(dls, layers=[64], opt_func=opt_func, metrics=accuracy)

class Bag(nn.Module):
    "The mean of the words' embeddings, and a linear layer on it"
    def __init__(self, n, n_out, size=64):
        super().__init__()
        self.emb,self.head = nn.Embedding(n, size),nn.Linear(size, n_out)
        nn.init.normal_(self.emb.weight, std=0.1)
    def forward(self, x): return self.head(self.emb(x).mean(1))

def passages(n_topics=8, n_words=40):
    "Passages of CPython's manual, and which of its eight longest pages they come from"
    words,rows = re.compile(r'\w+|[^\w\s]'),[]
    longest = sorted(topics, key=lambda o: -len(topics[o]))[:n_topics]
    for y,o in enumerate(longest):
        text = words.findall(topics[o])[:4000]
        rows += [(text[i:i+n_words],y) for i in range(0, len(text)-n_words+1, n_words)]
    vocab = {o:i for i,o in enumerate(sorted({w for t,_ in rows for w in t}))}
    x,y = torch.tensor([[vocab[w] for w in t] for t,_ in rows]),torch.tensor([y for _,y in rows])
    valid = torch.arange(len(y)) % 4 == 3
    dls = DataLoaders.from_dsets(TensorDataset(x[~valid],y[~valid]), TensorDataset(x[valid],y[valid]), bs=32, num_workers=0, device='cpu')
    return x[~valid],(dls,len(vocab),n_topics)

def text(opt_func, x, data):
    dls,n,n_out = data
    return Learner(dls, Bag(n, n_out), nn.CrossEntropyLoss(), opt_func=opt_func, metrics=accuracy)

def main(file):
    torch.set_num_threads(1)
    res = []
    for task,make,(data,dls) in ('tabular',tabular,patterns()),('text',text,passages()):
        n = EPOCHS*len((dls[0] if task == 'text' else dls).train)
        opts = {('Adam',''): Adam}
        for k in '15%',1000:
            memory = {} if k == '15%' else dict(len_memory=k)
            opts['AdaMod',k] = partial(AdaMod, **memory)
            opts['AdaMod skip_zeros',k] = partial(AdaMod, **memory, skip_zeros=True)
        for (opt,memory),opt_func in opts.items():
            for lr in LRS:
                for seed in SEEDS:
                    set_seed(seed)
                    learn = make(opt_func, data, dls)
                    learn.logger = noop
                    learn.remove_cb(learn.progress)
                    learn.fit(EPOCHS, lr)
                    res.append(dict(task=task, optimizer=opt, memory=memory, lr=lr, seed=seed, batches=n,
                                    **dict(zip(('train_loss','valid_loss','accuracy'), learn.recorder.values[-1]))))
                print(*res[-1].values(), flush=True)
    pd.DataFrame(res).round(4).to_csv(file, index=False, lineterminator='\n')

if __name__ == '__main__': main(*sys.argv[1:] or ['nbs/rare_rows.csv'])
