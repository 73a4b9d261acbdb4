"The pairs, the model and the schedule of benchmarks/translation.py"
import sys
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.basics import DataLoaders, Learner
from fastai.optimizer import Adam
from fastai.torch_core import no_random

from adamod_fastai.all import AdaMod, ClippedFraction

sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
import translation, translation_data, translation_rates
from translation import PAD, Translators, losses, sum_loss

def sentences(n, length, seed=1):
    "`n` rows of pieces, each as long as it likes and then padded"
    gen = torch.Generator().manual_seed(seed)
    x = torch.randint(4, 30, (n,length), generator=gen)
    x[torch.arange(length) >= torch.randint(2, length+1, (n,1), generator=gen)] = PAD
    return x

def small(n):
    with no_random(0): return Translators(n, n_vocab=30, d=8, n_layers=2)

def layers_of(model): return [(1 if p.dim()==4 else 0,p) for p in model.parameters()]  # where the networks are counted

@pytest.mark.parametrize('opt_func', [AdaMod, Adam])
def test_networks_side_by_side_are_trained_as_if_alone(opt_func):
    both,alone = small(3),[small(1) for _ in range(3)]
    for i,m in enumerate(alone):
        for (at,p),(_,q) in zip(layers_of(m), layers_of(both)): p.data.copy_(q.data.narrow(at, i, 1))
    opts = [opt_func(list(m.parameters()), lr=1e-2) for m in (both,*alone)]
    def step(model, opt, x, y):
        sum_loss(model(x, y), y).backward()
        opt.step()
        opt.zero_grad()
    for seed in range(3):
        x,y = sentences(12, 7, seed),sentences(12, 5, seed+9)
        step(both, opts[0], x, y)
        for i,m in enumerate(alone): step(m, opts[i+1], x[4*i:4*i+4], y[4*i:4*i+4])
    for i,m in enumerate(alone):
        for (at,p),(_,q) in zip(layers_of(m), layers_of(both)): torch.testing.assert_close(p, q.narrow(at, i, 1), rtol=1e-3, atol=1e-5)

def test_padding_changes_nothing():
    m,x,y = small(2),sentences(4, 7),sentences(4, 5)
    more = lambda o: torch.cat([o, torch.full((4,3), PAD)], 1)
    torch.testing.assert_close(losses(m(x, y), y), losses(m(more(x), more(y)), more(y)))

def test_no_piece_is_guessed_from_those_after_it():
    m,x,y = small(2),sentences(4, 7),torch.randint(4, 30, (4,5))
    other = y.clone()
    other[:,3:] = 5
    torch.testing.assert_close(m(x, y)[:,:,:3], m(x, other)[:,:,:3])
    assert not torch.allclose(m(x, y)[:,:,3:], m(x, other)[:,:,3:])

def test_validating_shows_each_network_the_same_sentences():
    m,x,y = small(2).eval(),sentences(4, 7),sentences(4, 5)
    m.train()
    as_trained = losses(m(x.repeat(2, 1), y.repeat(2, 1)), y.repeat(2, 1))
    m.eval()
    torch.testing.assert_close(losses(m(x, y), y), as_trained)

def test_loss_is_the_mean_over_the_pieces():
    m,x,y = small(2),sentences(4, 7),sentences(4, 5)
    with torch.no_grad():
        probs = m(x, y).softmax(-1)
        for i,got in enumerate(losses(m(x, y), y)):
            own = [-probs[i,j,k,y[2*i+j,k]].log() for j,k in product(range(2), range(5)) if y[2*i+j,k] != PAD]
            assert got.item() == pytest.approx(sum(own).item()/len(own), rel=1e-4)

def test_an_epoch_shows_all_pairs_as_often_and_mixes_them():
    n = 50
    y = sentences(n, 9)
    dl = translation.PairDL(torch.utils.data.TensorDataset(torch.arange(n)[:,None]+1, y), bs=10, shuffle=True, n=100)
    batches = list(dl)
    seen = torch.cat([x[:,0] for x,_ in batches])
    assert torch.bincount(seen-1).tolist() == [2]*n
    assert all(y.shape[1] == (y != PAD).sum(1).max() for _,y in batches)
    assert seen.tolist() != torch.cat([x[:,0] for x,_ in dl]).tolist()

def fit(opt_func, *cbs):
    data = torch.utils.data.TensorDataset(sentences(80, 7), *[sentences(80, 5, 2)]*2)
    dls = DataLoaders(translation.PairDL(data, bs=20, shuffle=True, n=400, n_inp=2), translation.PairDL(data, bs=20, n_inp=2))
    learn = Learner(dls, small(5), loss_func=sum_loss, opt_func=opt_func)
    with no_random(0), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2, cbs=list(cbs))
    return learn

def test_layers_together_are_clipped_as_the_callback_says():
    layers,clipped = translation_rates.Layers(),ClippedFraction(every=1)
    learn = fit(AdaMod, layers, clipped)
    df = pd.DataFrame(layers.rows).astype(dict(clipped=float, used=float))
    sizes = {'emb': learn.model.emb.numel(), **{o: sum(p.numel() for p in getattr(learn.model, o))/2 for o in ('encoder','decoder')}}
    parts = df.clipped*df.part.map(sizes)
    whole = parts.groupby(df.batch).sum()/sum(p.numel() for p in learn.model.parameters())
    assert whole.tolist() == pytest.approx(clipped.fractions, abs=1e-3) and len(whole)==20  # rates that equal their memory count only there
    assert df.used.between(0, 1).all() and df[df.batch==1].used.max() == pytest.approx(1/3, rel=0.01)  # 15% of 20 batches are 3

def test_adam_uses_all_of_its_rate():
    layers = translation_rates.Layers()
    fit(Adam, layers)
    df = pd.DataFrame(layers.rows).astype(float, errors='ignore')
    assert (df.used.astype(float)==1).all() and (df.clipped.astype(float)==0).all()
    assert len(layers.losses)==20 and len(layers.losses[0])==5

def words(s): return set(s.lower().split())

def test_nothing_to_train_on_is_near_to_what_validates(monkeypatch):
    monkeypatch.setattr(translation_data, 'n_valid', 3)
    some = [' '.join(o) for o in product(('open','close','save','print'), ('the','a','this','that'), ('file','window','image','page'))]
    other = torch.randperm(len(some), generator=torch.Generator().manual_seed(0)).tolist()
    df = pd.DataFrame(dict(package='x', en=some, de=[some[i] for i in other]))
    got = translation_data.split(df)
    train,valid = [got[got.split==o] for o in ('train','valid')]
    assert len(valid)==3
    share = lambda a, b: len(words(a)&words(b))/len(words(a)|words(b))
    near = lambda o: any(share(o[k], v) >= 0.5 for k in ('en','de') for v in valid[k])
    left = df[~df.en.isin(valid.en)]
    assert set(train.en) == {o.en for _,o in left.iterrows() if not near(o)} and 0 < len(train) < len(left)

@pytest.mark.parametrize('message,want', [('Open the _file again', 'Open the file again'), ('Open the\nfile again', 'Open the file again'),
    ('Open file', ''), ('Cannot open the file %s', ''), ('Read the file notes.txt there', ''), ('Use <b>this</b> file then', '')])
def test_sentences_are_plain_words(message, want): assert translation_data.sentence(message) == want

def test_inverse_square_root():
    from adamod_fastai.compare.tasks import digits_learner
    learn = digits_learner(AdaMod)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 0.01, cbs=translation.inverse_sqrt(learn))
    lrs = learn.recorder.lrs
    n = len(lrs)
    assert max(lrs) == pytest.approx(0.01, rel=0.2) and lrs.index(max(lrs)) in range(n//10, n//10+2)
    assert lrs[-1] == pytest.approx(0.01*(0.1*n/(n-1))**0.5, rel=0.01)
