"What `compare` keeps and shows, to the last figure"
import math, os

import numpy as np
import pandas as pd
import pytest
import matplotlib.pyplot as plt

from adamod_fastai.compare import compare, compare_table, plot_metric
from adamod_fastai.store import _Code
from adamod_fastai.tasks import text_dls
from test_compare import Tiny, frame

def test_losses_are_those_of_training(tmp_path):
    get = Tiny()
    df = compare(get, 'SGD', 0.1, seeds=1, n_epoch=3, out=tmp_path)
    smooth,avg = [],0.     # fastai's recorder keeps them smoothed only
    for i,o in enumerate(df.losses[0]):
        avg = 0.98*avg + 0.02*o
        smooth.append(avg/(1-0.98**(i+1)))
    np.testing.assert_allclose(smooth, np.array(get.made[0].recorder.losses), rtol=2e-6)

def test_of_which_a_part_diverged_is_never_the_best():
    df = frame()
    df.loc[(df.opt=='B') & (df.lr==1.),'accuracy'] = [.99,.99,math.nan]
    assert compare_table(df)['1'].str.contains(r'\*').tolist() == [True,False]

def test_the_only_one_that_did_not_diverge_has_no_spread():
    df = frame()
    last = (df.opt=='B') & (df.lr==1.) & (df.seed > 0)
    df.loc[last,['accuracy','diverged']] = [math.nan,True]
    assert compare_table(df).loc['B','1'].strip() == '0.950 (2 of 3 diverged)'

def test_points_stand_at_their_rates():
    "Beside each other, but much nearer to their own rate than to the next"
    ax = plot_metric(frame())
    xs = np.array([c.lines[0].get_xdata() for c in ax.containers], float)
    assert (np.abs(np.log10(xs/[0.1,1.])) < 0.1).all() and len(set(xs[:,0])) == 2
    plt.close('all')

@pytest.mark.parametrize('opts', [['Adam','AdaMod'], ['mine','AdaMod','yours','SGD'], list('abcdefgh')+['RAdam','Adam']])
def test_an_optimizer_looks_the_same_in_all_pictures_and_as_no_other(opts):
    df = frame()
    ax = plot_metric(pd.concat(df[df.opt=='A'].assign(opt=o) for o in opts))
    looks = {c.get_label(): tuple(getattr(c.lines[0], f'get_{k}')() for k in ('color','marker','linestyle')) for c in ax.containers}
    assert list(looks) == opts and len(set(looks.values())) == len(opts)
    alone = plot_metric(df[df.opt=='A'].assign(opt='AdaMod')).containers[0].lines[0].get_color()
    assert alone == looks.get('AdaMod', (alone,))[0] and alone not in [v[0] for k,v in looks.items() if len(k) > 1 and k != 'AdaMod']
    plt.close('all')

def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    "Killed while it is written anew, with a column more, it is what it was"
    compare(Tiny(), 'SGD', 0.1, seeds=1, n_epoch=1, out=tmp_path)
    before = (tmp_path/'results.csv').read_bytes()
    def killed(*args): raise SystemExit
    monkeypatch.setattr(os, 'replace', killed)
    with pytest.raises(SystemExit): compare(Tiny(), 'AdaMod', 0.1, seeds=1, n_epoch=1, out=tmp_path)
    assert (tmp_path/'results.csv').read_bytes() == before

def test_an_epoch_of_text_is_from_all_of_it():
    dls = text_dls()
    blocks = {tuple(o.tolist()): i for i,o in enumerate(dls.train_ds.tensors[0])}
    a,b = [[blocks[tuple(o.tolist())] for x,_ in dls.train for o in x] for _ in range(2)]
    assert a != b and max(a) > 0.9*len(blocks) and min(a) < 0.1*len(blocks) and a != sorted(a)

def test_arrays_of_the_same_bytes_are_told_apart():
    arrays = [np.zeros((2,3)),np.zeros((3,2)),np.zeros(6),np.zeros(6, int),np.zeros(12, np.float32)]
    assert len({str(_Code(o)) for o in arrays}) == len(arrays)
