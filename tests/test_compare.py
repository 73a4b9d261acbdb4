"The table and the pictures, to the last figure"
import math

import matplotlib.pyplot as plt
import numpy as np, pandas as pd, pytest
from fastai.learner import mk_metric

from adamod_fastai.compare import compare_table, opt_styles, plot_losses, plot_metric

# The table and the pictures

def frame(**diverged):
    "Two optimizers at two rates with three seeds, and numbers one can check by hand"
    acc = {('A',0.1): (.5,.6,.7), ('A',1.): (.9,.9,.9), ('B',0.1): (.1,.2,.3), ('B',1.): (.95,.85,math.nan)}
    return pd.DataFrame([dict(opt=o, lr=lr, seed=s, train_loss=1., valid_loss=1-a, accuracy=a, seconds=1., diverged=math.isnan(a),
                              batches=20, losses=[2.]*20 if o=='A' else [4.,2.]*10) 
                         for (o,lr),accs in acc.items() for s,a in enumerate(accs)])

def test_table():
    t = compare_table(frame())
    assert isinstance(t, pd.DataFrame) and list(t.index)==['A','B'] and list(t.columns)==['0.1','1']
    assert t.loc['A','0.1'].split()==['0.600','±','0.100','*'] and t.loc['B','0.1'].split()==['0.200','±','0.100']
    assert t.loc['A','1'].split()==['0.900','±','0.000','*']
    assert '1 of 3 diverged' in t.loc['B','1'] and '*' not in t.loc['B','1']

def test_table_of_losses_marks_the_lowest():
    t = compare_table(frame(), 'valid_loss')
    assert t.loc['A','0.1'].split()==['0.400','±','0.100','*'] and '*' not in t.loc['B','0.1']

def test_table_of_one_seed_has_no_spread():
    df = frame()
    assert '±' not in compare_table(df[df.seed==0]).to_string()

def test_unknown_metric():
    with pytest.raises(ValueError, match="Invalid metric: 'f1'"): compare_table(frame(), 'f1')

def test_plot_metric():
    ax = plt.subplots()[1]
    assert plot_metric(frame(), ax=ax) is ax
    assert ax.get_xscale()=='log' and ax.get_xlabel()=='learning rate' and ax.get_ylabel()=='accuracy'
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['A','B']
    means = [c.lines[0].get_ydata() for c in ax.containers]
    assert np.allclose(means[0], [.6,.9]) and np.allclose(means[1], [.2,.9])
    low,high = [o[:,1] for o in ax.containers[0].lines[2][0].get_segments()][0]
    assert (low,high)==pytest.approx((.5,.7))
    plt.close('all')

def test_plot_losses():
    ax = plt.subplots()[1]
    assert plot_losses(frame(), ax=ax) is ax
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['A, lr 1','B, lr 1 (diverged)']
    a,b = [o.get_ydata() for o in ax.get_lines()]
    assert np.allclose(a, 2) and b[0]==pytest.approx(4) and b[1]==pytest.approx((4*.9+2)/1.9) and len(b)==20
    plt.close('all')

def test_plot_losses_at_a_rate():
    ax = plot_losses(frame(), lr=0.1)
    assert [o.get_text() for o in ax.get_legend().get_texts()]==['A','B']
    with pytest.raises(ValueError, match='Invalid lr: 5'): plot_losses(frame(), lr=5)
    plt.close('all')

def test_losses_that_are_not_there_are_said_where_they_are():
    with pytest.raises(ValueError, match="^Invalid df: it has no column 'losses'. .* losses.csv"):
        plot_losses(frame().drop(columns='losses'))

# What is where

def test_all_has_what_a_user_types():
    names = {}
    exec('from adamod_fastai.all import *', names)
    assert {'compare','compare_table','plot_metric','plot_losses','known_opts','AdaMod','FusedOptimizer','ClippedFraction'} <= set(names)
    assert not [o for o in names if o=='main' or o.endswith(('_dls','_learner'))]

# --- lower is better

def fastai_metrics():
    from fastai import metrics as m
    low = [m.mae, m.mse, m.rmse, m.exp_rmspe, m.msle, m.error_rate, m.BrierScore(), m.BrierScoreMulti(),
           m.HammingLoss(), m.HammingLossMulti(), m.Perplexity()]
    high = [m.accuracy, m.accuracy_multi, m.top_k_accuracy, m.foreground_acc, m.APScoreBinary(), m.APScoreMulti(),
            m.BalancedAccuracy(), m.CohenKappa(),
            m.F1Score(), m.F1ScoreMulti(), m.FBeta(2), m.Jaccard(), m.MatthewsCorrCoef(), m.Precision(), m.Recall(), m.RecallMulti(),
            m.RocAuc(), m.RocAucBinary(),
            m.R2Score(), m.ExplainedVariance(), m.PearsonCorrCoef(), m.SpearmanCorrCoef(), m.Dice(), m.DiceMulti(), m.JaccardCoeff(),
            m.CorpusBLEUMetric(vocab_sz=5)]
    name = lambda o: mk_metric(o).name
    more = [(k,True) for k in 'valid_loss train_loss loss_rise mean_absolute_error max_error log_loss zero_one_loss wer RMSE'.split()]
    return [(name(o),True) for o in low] + [(name(o),False) for o in high] + more + [('glossary',False), ('terror',False)]

@pytest.mark.parametrize('name,low', fastai_metrics())
def test_which_metrics_are_better_when_low(name, low):
    df = frame().rename(columns={'accuracy': name})
    df = df.loc[:,~df.columns.duplicated(keep='last')]
    starred = lambda **kw: [o for o in 'AB' if '*' in compare_table(df, name, **kw).loc[o,'0.1']]
    assert starred()==['B' if low else 'A'] and starred(lower=True)==['B'] and starred(lower=False)==['A']

def test_the_pictures_know_it_too():
    df = frame().rename(columns={'accuracy': 'mae'})
    labels = lambda **kw: [o.get_text() for o in plot_losses(df, **kw).get_legend().get_texts()]
    assert labels()==['A, lr 0.1','B, lr 0.1'] and labels(lower=False)==['A, lr 1','B, lr 1 (diverged)']
    assert plot_metric(df.assign(mae=10**df.mae.mul(5)), 'mae').get_yscale()=='log'
    assert plot_metric(df.assign(mae=10**df.mae.mul(5)), 'mae', lower=False).get_yscale()=='linear'
    plt.close('all')

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

@pytest.mark.parametrize('a,b,stars', [(.2474,.2471,''), (.2484,.2471,'A'), (.2471,.2484,'B'), (.3,.3,'')])
def test_what_looks_the_same_has_no_star(a, b, stars):
    df = pd.DataFrame([dict(opt=o, lr=0.1, seed=0, valid_loss=1., accuracy=v, seconds=1., diverged=False) for o,v in zip('AB', (a,b))])
    table = compare_table(df)['0.1']
    assert [o for o in 'AB' if '*' in table[o]]==list(stars)

def test_one_run_has_no_standard_deviation():
    df = frame()
    assert plot_metric(df[(df.seed==0)]).get_title()=='of one run'
    assert plot_metric(df).get_title()=='mean ± standard deviation of 3 runs, × diverged'
    plt.close('all')

def test_variants_of_an_optimizer_have_its_colour_and_other_lines():
    opts = ['AdaMod','AdaMod-1000','AdaMod, averaging 10%','AdaMod, averaging 30%','Adam','Adam, warmup 10%','mine']
    looks = opt_styles(opts)
    colours = {k: v['color'] for k,v in looks.items()}
    assert list(looks)==opts and len({str(o) for o in looks.values()})==len(opts)
    assert len({colours[o] for o in opts[:4]})==1 and colours['Adam']==colours['Adam, warmup 10%'] and len(set(colours.values()))==3
    for o in opts[:6]: assert opt_styles([o])[o]['color']==colours[o]

# --- what a table says of odd runs

def of_runs(scores, **kwargs):
    same = dict(lr=0.1, valid_loss=1., seconds=1., diverged=False)
    rows = [dict(same, opt=o, seed=i, score=v) for o,l in scores.items() for i,v in enumerate(l)]
    return pd.DataFrame(rows).assign(**kwargs)

def test_a_metric_that_is_nan_in_a_run_is_told():
    table = compare_table(of_runs(dict(Adam=[.5,.5], AdaMod=[.9,math.nan])), 'score')['0.1'].str.strip()
    assert table.to_dict() == {'Adam': '0.500 ± 0.000 *', 'AdaMod': '0.900 (1 of 2 nan)'}

def test_runs_of_two_comparisons_make_no_mean():
    df = of_runs(dict(Adam=[.5,.5]))
    with pytest.raises(ValueError, match='Adam at lr 0.1 has two runs of seed 0'): compare_table(pd.concat([df,df]))

@pytest.mark.parametrize('metric,low', [('cross_entropy',True), ('MeanAbsoluteError',True), ('top_1_error',True), ('accuracy',False),
                                        ('F1Score',False), ('AccumMetric',False), ('r2_score',False), ('RocAucBinary',False)])
def test_a_metric_is_better_when_low_as_its_name_says(metric, low):
    df = of_runs(dict(Adam=[.5], AdaMod=[.9])).rename(columns=dict(score=metric))
    starred = compare_table(df, metric)['0.1'].str.contains(r'\*')
    assert starred.to_dict() == {'Adam': low, 'AdaMod': not low}

@pytest.mark.parametrize('metric', ['opt','nothing'])
def test_a_metric_is_a_column_of_numbers(metric):
    with pytest.raises(ValueError, match=f"Invalid metric: '{metric}'.*score"): compare_table(of_runs(dict(Adam=[.5])), metric)
