"The command that tells whether all is right on a device, on this one"
import json
from unittest.mock import patch

import pytest
import torch
from fastai.basics import CancelStepException, noop

from adamod_fastai import check
from adamod_fastai.fused import kernel, step
from adamod_fastai.optimizer import AdaMod
from test_training_loop import Autocast

@pytest.fixture
def small(monkeypatch):
    "One optimizer, and one shape to time"
    monkeypatch.setattr(check, '_checked_opts', {AdaMod: None})
    monkeypatch.setattr(check, '_timed_shapes', ['200 of 64×64'])
    monkeypatch.setattr(check, '_timed', {k:v for k,v in check._timed.items() if not k.startswith('DiffMod')})

CPU = ['--device','cpu']

@pytest.mark.slow
def test_all_is_right_here(small, tmp_path, capsys):
    step._kernels.clear()
    assert check.run_checks([*CPU,'--reps','3','--json',str(tmp_path/'a.json')]) is False
    assert len(step._kernels) <= 4 # one each for float32, bfloat16 and parameters without decay; a GPU has to compile them in two minutes
    found,out = json.loads((tmp_path/'a.json').read_text()),capsys.readouterr().out
    results = {o['what']:o['result'] for o in found['rows']}
    missing = {k for k,v in results.items() if v=='not here'}
    assert missing == {k for k in results if 'to_' in k or 'scaler' in k} and set(results.values()) == {'ok','not here'}
    assert out.splitlines()[-1] == f'All right: {len(results)-len(missing)} checks on cpu, {len(missing)} cannot be made here'
    assert {o['optimizer'] for o in found['times']} == set(check._timed) and all(o['ratio'] > 0 for o in found['times'])

def test_a_step_that_does_nothing_is_not_right(small, monkeypatch, capsys):
    "In place of the compiled one"
    monkeypatch.setattr(step, '_kernels', {})
    monkeypatch.setattr(kernel, 'compile_module', lambda *args: lambda *args: True)
    monkeypatch.setattr(check, 'learner_checks', lambda device: ())
    assert check.run_checks([*CPU,'--reps','0']) is True
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith('Not right: ') and 'AdaMod, float32: fused and eager' in last and 'eager and float64' not in last

def test_one_that_is_stepped_eagerly_is_not_right(small):
    "As where nothing can be compiled"
    def fail(*args): raise RuntimeError('no luck today')
    with patch.object(step, '_kernels', {}), patch.object(kernel, '_compile_once', fail):
        rows = [check.run_check(*o) for o in check.step_checks(torch.device('cpu')) if o[0]=='AdaMod, float32: fused and eager']
    assert rows[0].result=='wrong' and 'no luck today' in rows[0].note

def test_what_is_not_here_is_not_wrong(): assert check.run_check('a', needs).result == 'not here'
def needs(): raise check.NotHere('a GPU')

@pytest.mark.parametrize('counts', [True,False], ids=['right','wrong'])
def test_steps_that_a_scaler_skips(counts, monkeypatch):
    "With a CPU's autocast and scaler, and with a Learner that steps all the same"
    class Steps(Autocast):
        def before_step(self):
            try: super().before_step()
            except CancelStepException:
                if counts: raise
    monkeypatch.setattr(check, 'MixedPrecision', lambda mode, **kwargs: Steps(torch.float16, **kwargs))
    monkeypatch.setattr(check, '_need_cuda', noop)
    row, = [check.run_check(*o) for o in check.learner_checks(torch.device('cpu')) if o[0]=='steps skipped by a scaler, eager']
    assert row.result == ('ok' if counts else 'wrong'), row.note
