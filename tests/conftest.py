import csv, warnings
from functools import partial

import matplotlib
import pytest
import torch

from adamod_fastai.optimizer import AdaMod, DiffMod

matplotlib.use('Agg')
torch.set_num_threads(1)  # the tensors here are small, and one thread is deterministic
torch.ones(1, requires_grad=True).sum().backward()  # before anything is compiled: the tests of processes fork this one

@pytest.fixture(autouse=True)
def _seed(): torch.manual_seed(42)

# --- one test, every optimizer and every way to run it

PATHS = {'eager': {}, 'fused': dict(fused=True)}
CASES = {f'{o.__name__}-{k}': (o,k) for o in (AdaMod,DiffMod) for k in PATHS}

def make_opt_func(case): return partial(CASES[case][0], **PATHS[CASES[case][1]])

@pytest.fixture(params=CASES)
def opt_func(request):
    "AdaMod and DiffMod, by every path"
    return make_opt_func(request.param)

# --- the support matrix: `pytest -m feature --matrix FILE`

COLLECTED,FOUND = [],{}

def pytest_addoption(parser):
    parser.addoption('--matrix', metavar='FILE', help='write what the tests marked `feature` found, by optimizer and path, to FILE (CSV)')

def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: left out of the everyday run, `pytest -m "not slow"`')
    config.addinivalue_line('markers', 'feature(name, eagerly): what a user would call that which this test shows, for the support matrix; '
                                       'and, where `fused=True` steps eagerly here, (a pattern of) the reason that it gives')

def line(item):
    "What a test tells about in the support matrix: area, feature, optimizer and path"
    mark,case = item.get_closest_marker('feature'),getattr(item, 'callspec', None) and item.callspec.params.get('opt_func')
    if mark and case in CASES:
        area = item.module.__name__.removeprefix('test_').replace('_', ' ').capitalize()
        return area,mark.args[0],CASES[case][0].__name__,CASES[case][1]

def eagerly(item):
    "The reason for which `item` expects the fused path to step eagerly, or None"
    if (o := line(item)) and o[-1] == 'fused': return item.get_closest_marker('feature').kwargs.get('eagerly')

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=lambda o: o.path.stem == 'test_support')     # last: it looks at what the others found
    COLLECTED[:] = items

@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    "A feature that `fused=True` steps eagerly is an error, unless its test says so; then that it does not"
    if why := eagerly(item):
        with pytest.warns(UserWarning, match=f'fused=True: .*eager.*{why}'): return (yield)
    with warnings.catch_warnings():
        if line(item): warnings.filterwarnings('error', 'fused=True: .*eager', UserWarning)
        return (yield)

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if (o := line(item)) and (call.when == 'call' or not report.passed):
        FOUND.setdefault(o, []).append('eagerly' if report.passed and eagerly(item) else report.outcome)
    return report

def found():
    "Of each line the worst that its tests found"
    return {k: next(o for o in ('failed','skipped','eagerly','passed') if o in v) for k,v in FOUND.items()}

def pytest_sessionfinish(session):
    if not (file := session.config.getoption('--matrix')): return
    with open(file, 'w', newline='') as f:
        rows = csv.writer(f, lineterminator='\n')
        rows.writerow(['area','feature','optimizer','path','result'])
        rows.writerows((*k,v) for k,v in found().items())
