import csv
from functools import partial

import matplotlib
import pytest
import torch

from adamod_fastai.optimizer import AdaMod, DiffMod

matplotlib.use('Agg')
torch.set_num_threads(1)  # the tensors here are small, and one thread is deterministic

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

# --- the support matrix: `pytest --matrix FILE`

_found = {}

def pytest_addoption(parser):
    parser.addoption('--matrix', metavar='FILE', help='write what the tests marked `feature` found, by optimizer and path, to FILE (CSV)')

def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: left out of the everyday run, `pytest -m "not slow"`')
    config.addinivalue_line('markers', 'feature(name): what a user would call that which this test shows, for the support matrix')

@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    mark,case = item.get_closest_marker('feature'),getattr(item, 'callspec', None) and item.callspec.params.get('opt_func')
    if mark and case in CASES and (call.when == 'call' or not report.passed):
        area = item.module.__name__.removeprefix('test_').replace('_', ' ').capitalize()
        _found.setdefault((area, mark.args[0], CASES[case][0].__name__, CASES[case][1]), []).append(report.outcome)
    return report

def pytest_sessionfinish(session):
    if not (file := session.config.getoption('--matrix')): return
    worst = lambda outcomes: next(o for o in ('failed','skipped','passed') if o in outcomes)
    with open(file, 'w', newline='') as f:
        rows = csv.writer(f, lineterminator='\n')
        rows.writerow(['area','feature','optimizer','path','result'])
        rows.writerows((*k,worst(v)) for k,v in _found.items())
