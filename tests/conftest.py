import csv, os, sys, warnings
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import matplotlib
import pytest
import torch
from fastai.learner import Learner

from adamod_fastai.compare import main
from adamod_fastai.optimizer import AdaMod, DiffMod
from comparisons import without_progress
from other_machine import become, machine_env

matplotlib.use('Agg')
torch.set_num_threads(1)  # the tensors here are small, and one thread is deterministic
torch.ones(1, requires_grad=True).sum().backward()  # before anything is compiled: the tests of processes fork this one

if os.environ.get('OTHER_MACHINE'):
    os.environ.update(machine_env())     # the processes that tests start, too
    become(Learner)

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

@pytest.fixture
def here(capfd, monkeypatch):
    "The command `adamod-compare` in this process, with `args` and in the folder `cwd`"
    path,modules = list(sys.path),set(sys.modules)
    def run(args, cwd):
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        try: code = main(args) or 0
        except SystemExit as e: code = e.code or 0
        out,err = capfd.readouterr()
        return CompletedProcess(args, code, out, without_progress(err))
    yield run
    sys.path[:] = path
    for o in set(sys.modules)-modules:
        if 'my_' in o or o == 'sub': sys.modules.pop(o)

# --- the processes that share the tests (pytest-xdist)

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    "One for each core, but none for the tests of a file or two: each would have to import torch"
    n = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    return min(n, 4) if config.args == config.getini('testpaths') else 0

LONG = 'test_notebook_runs'     # of test_project: each page is a test that shares nothing with others, and takes longest

def is_long(nodeid): return f'::{LONG}[' in nodeid

@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    "One process does the tests of a file, which share what they compile and what they make once, but a page goes to any"
    from xdist.scheduler import LoadScopeScheduling
    class Files(LoadScopeScheduling):
        def _split_scope(self, nodeid): return nodeid if is_long(nodeid) else nodeid.partition('::')[0]
    return Files(config, log)

# --- the support matrix: `pytest -m feature --matrix FILE`

COLLECTED,FOUND = [],{}

def is_whole(config):
    "Has pytest been asked for the whole suite?"
    return config.args == config.getini('testpaths') and not config.option.ignore

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
    COLLECTED[:] = items
    items.sort(key=lambda o: not is_long(o.nodeid))     # first: at the end no process waits for another

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
        report.user_properties.append(('found', (*o, 'eagerly' if report.passed and eagerly(item) else report.outcome)))
    return report

def pytest_runtest_logreport(report):
    "The process that began the session is told of all tests, whichever did them"
    for *o,result in (v for k,v in report.user_properties if k == 'found'): FOUND.setdefault(tuple(o), []).append(result)

def found():
    "Of each line the worst that its tests found"
    return {k: next(o for o in ('failed','skipped','eagerly','passed') if o in v) for k,v in FOUND.items()}

def table():
    "The committed matrix"
    with open(Path(__file__).parent.parent/'nbs/support.csv') as f: return {tuple(row[:-1]): row[-1] for row in list(csv.reader(f))[1:]}

AGAIN = 'run pytest -m feature --matrix nbs/support.csv'

def differences():
    "What was found, where every test has run, against the matrix: but where its machine could not run a test and this one can"
    was,now = table(),found()
    return {k: v for k,v in now.items() if v != was.get(k) != 'skipped' or v == 'failed'} if set(was) <= set(now) else {}

def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption('--matrix'):
        for k,v in differences().items(): terminalreporter.write_line(f'{k}: {v}, unlike nbs/support.csv, {AGAIN}', red=True)

def pytest_sessionfinish(session):
    if hasattr(session.config, 'workerinput'): return
    if not (file := session.config.getoption('--matrix')):
        if differences(): session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return
    with open(file, 'w', newline='') as f:
        rows = csv.writer(f, lineterminator='\n')
        rows.writerow(['area','feature','optimizer','path','result'])
        rows.writerows((*k,v) for k,v in found().items())
