"""Put small mistakes into a copy of the package, one at a time, and say which of them the tests do not notice

python tools/mutants.py --list             # all of them, and those whose text is not found any more
python tools/mutants.py --jobs 2 [NAME ...]

A mistake is a name, a text that stands once in the package, what replaces it, and the tests that are to notice it: `rule` is
tests/test_rule.py. The tests that are not slow run first, the slow ones if those pass; without a mistake all of them have to pass.
The status is 0 if all mistakes are found and noticed.
"""
import argparse, os, re, shutil, subprocess, sys, time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parent.parent
Mistake = namedtuple('Mistake', 'name old new tests')

def sources(folder=root): return [o for o in sorted((folder/'adamod_fastai').rglob('*.py')) if o.name != '_modidx.py']

def why_not(mistake, folder=root):
    "What keeps a mistake from being put into the package in `folder`, empty if nothing does"
    n = sum(o.read_text(encoding='utf-8').count(mistake.old) for o in sources(folder))
    missing = [o for o in mistake.tests.split() if not (folder/f'tests/test_{o}.py').is_file()]
    if n != 1: return f'{n} times in the package, not once: {mistake.old!r}'
    return f'no tests/test_{missing[0]}.py' if missing else ''

def copy_to(folder):
    "Copy what git tracks, or would track"
    files = subprocess.run(['git','ls-files','-z','-co','--exclude-standard'], cwd=root, capture_output=True, text=True, check=True).stdout
    for o in filter(None, files.split('\0')):
        if not (root/o).is_file(): continue
        (folder/o).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/o, folder/o)

def put_in(mistake, folder):
    "Replace the text, wherever in the package it stands"
    for o in sources(folder):
        text = o.read_text(encoding='utf-8')
        o.write_text(text.replace(mistake.old, mistake.new), encoding='utf-8')

def run_tests(folder, *args):
    "Status and output of pytest in the copy in `folder`, whose package is imported"
    env = dict(os.environ, PYTHONPATH=str(folder), MPLBACKEND='Agg', OMP_NUM_THREADS='1')
    find = "import importlib.util as o; print(o.find_spec('adamod_fastai').origin)"
    where = subprocess.run([sys.executable,'-c',find], cwd=folder, env=env, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(where).resolve().is_relative_to(folder.resolve()): raise RuntimeError(f'{where} would be tested, not the copy in {folder}')
    cmd = [sys.executable,'-m','pytest','-x','-q','--tb=line','-p','no:cacheprovider','-o','addopts=',*args]
    try: res = subprocess.run(cmd, cwd=folder, env=env, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired: return 1,'it hangs'
    return res.returncode,res.stdout

def notice(mistake):
    "Which test notices a mistake, `None` if none does"
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        copy_to(folder)
        put_in(mistake, folder)
        files = [f'tests/test_{o}.py' for o in mistake.tests.split()]
        for marked in 'not slow','slow':
            status,out = run_tests(folder, '-m', marked, *files)
            if status in (0,5): continue # 5: there are no such tests
            if status != 1: raise RuntimeError(f'With {mistake.name!r} the tests do not run: {out[-2000:]}')
            failed = re.findall(r'^(?:FAILED|ERROR) (?:tests/)?(.+?)(?: - .*)?$', out, re.M)
            return failed[0] if failed else out

def main():
    p = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    p.add_argument('names', nargs='*', help='mistakes to put in, all if none is named')
    p.add_argument('--list', action='store_true', help='list them, and do nothing')
    p.add_argument('--jobs', type=int, default=1, help='how many at a time')
    args = p.parse_args()
    if unknown := set(args.names)-{o.name for o in MISTAKES}: p.error(f'no mistake is called {", ".join(unknown)}')
    todo = [o for o in MISTAKES if not args.names or o.name in args.names]
    lost = {o.name: why for o in todo if (why := why_not(o))}
    if args.list:
        for o in todo: print(f'{o.name}: {o.tests}')
    unnoticed = []
    def told(o):
        start = time.monotonic()
        by = notice(o)
        if not by: unnoticed.append(o.name)
        print(f'{"noticed" if by else "NOT NOTICED":11}  {o.name}, {time.monotonic()-start:.0f} s: {by or o.tests}', flush=True)
    with ThreadPoolExecutor(args.jobs) as pool: list(pool.map(told, [] if args.list else [o for o in todo if o.name not in lost]))
    for name,why in lost.items(): print(f'NOT FOUND    {name}: {why}')
    if not args.list: print(f'{len(todo)-len(lost)-len(unnoticed)} of {len(todo)} are noticed')
    return bool(unnoticed or lost)

# --- the mistakes

MISTAKES = [Mistake(*o) for o in [
    # the rule
    ('eps of the paper is not scaled', '(lr*root,eps*root) if paper else', '(lr*root,eps) if paper else', 'optimizer'),
    ('lr 0 forgets the last lr', 'if follow_lr: lr = lr or last_lr or 1.', 'if follow_lr: lr = lr or 1.', 'optimizer'),
    ('averages in the narrow dtype', ', p.grad.data, dtype=torch.promote_types(p.dtype, torch.float32))',
     ', p.grad.data)', 'bfloat16 optimizer'),
    ('beta3 the wrong way round', 'lr_avg.lerp_(rate, 1-beta3)}', 'lr_avg.lerp_(rate, beta3)}', 'optimizer'),
    ('the average starts at the first rate', "zeros_like(rate)\n    return {'lr_avg': lr_avg.lerp_(rate, 1-beta3)}",
     "clone(rate)\n    return {'lr_avg': lr_avg.lerp_(rate, 1-beta3)}", 'optimizer'),
    ('negative gradients are skipped too', '(p.grad.data != 0).to(', '(p.grad.data > 0).to(', 'hard_cases'),
    ('DeepMemory skips no zeros', '[average_seen_lr if skip_zeros else average_lr, mean_rate,', '[average_lr, mean_rate,', 'hard_cases'),
    ('lr and last lr exchanged', 'lr_avg.mul_(new/last_lr)', 'lr_avg.mul_(last_lr/new)', 'optimizer'),
    ('the lr of an average that is not rescaled', 'last_lr + (1-beta3)*(lr-last_lr)', 'last_lr + beta3*(lr-last_lr)', 'optimizer'),
    ('the sign of the change', '(prev_grad-grad)', '(grad-prev_grad)', 'optimizer'),
    ('the last gradient is no copy', "'prev_grad': prev_grad.copy_(grad)", "'prev_grad': grad", 'optimizer'),
    ('the last gradient in float32', 'torch.zeros_like(grad, dtype=grad_dtype)', 'torch.zeros_like(grad)', 'bfloat16 costs'),
    ('a step at an lr of 0', 'value=0. if lr==0 else -debiased', 'value=-debiased', 'optimizer'),
    ('the friction stays in the state', "return {'rate': None, 'friction': None}", "return {'rate': None}", 'optimizer'),
    # step functions and rounding
    ('bfloat16 is cut off', '(x.view(torch.int32)+bits & -65536)', '(x.view(torch.int32) & -65536)', 'bfloat16'),
    ('equal gradients are rounded alike', ' ^ (p.float().view(torch.int32)>>16)', '', 'bfloat16'),
    ('the same bits at each step', '(step*0x9e3779b1 &', '(0x9e3779b1 &', 'bfloat16'),
    ('what is None stays in the state', 'if v is None: state.pop(k, None)', 'if v is None: continue', 'optimizer'),
    ('what a sharded step drops stays', 'for k in set(state)-set(new): del state[k]', 'for k in (): del state[k]', 'processes'),
    # the optimizer
    ('a beta of 1 is allowed', 'ok = bool(lo <= v < hi)', 'ok = bool(lo <= v <= hi)', 'optimizer'),
    ('a beta3 that is set still fits', "if k=='beta3' and 'fit_memory' in self:", "if k=='eps' and 'fit_memory' in self:", 'default'),
    ('a parameter in two groups takes two steps', 'if not (p in seen or seen.add(p))', 'if not (p in seen)', 'hard_cases'),
    ('the state narrows with its parameter', 'state[k] = v.to(device, torch.promote_types(v.dtype, dtype))',
     'state[k] = v.to(device, dtype)', 'hard_cases'),
    ('the graph of a gradient stays', 'if p.grad.grad_fn is not None: p.grad.detach_()', '', 'optimizer'),
    ('a gradient that is frozen stays', 'if not p.requires_grad: p.grad = None', 'pass', 'optimizer hard_cases'),
    ('a checkpoint is no copy', 'k:v.clone() if isinstance(v, Tensor) else _plain(v)',
     'k:v if isinstance(v, Tensor) else _plain(v)', 'seams'),
    ('what Lookahead loads is no copy', "count,slow = sd['count'],_slow(self, sd['slow_weights'])",
     "count,slow = sd['count'],sd['slow_weights']", 'seams optimizer'),
    ('slow weights in bfloat16', 'torch.promote_types(p.dtype, torch.float32) if is_ours else p.dtype', 'p.dtype', 'bfloat16'),
    # the averaging length
    ('beta3 of one group is not used', "return super().for_group(hyper) if hyper.get('fit_memory') else {}",
     'return super().for_group(hyper)', 'default'),
    ('a wish of one group is that of all', "any(h.get('fit_memory') for h in unwrap(opt)",
     "all(h.get('fit_memory') for h in unwrap(opt)", 'default'),
    ('what a step was told stays', 'self.hypers,self.for_step or [{}]*len(self.hypers),None',
     'self.hypers,self.for_step or [{}]*len(self.hypers),self.for_step',
     'length optimizer'),
    ('a cancelled step leaves what it was told', 'if not taken: opt.for_step = None', 'pass', 'length'),
    ('a wrapper is looked into by name', 'for o in getattr(opt, \'__dict__\', {}).values() if',
     "for o in [getattr(opt, 'opt', None)] if", 'length'),
    ('the default stays with Adam', 'if not fits_memory(self.opt): self.remove_cb(DefaultMemoryLength)',
     'if not fits_memory(self.opt): pass', 'default'),
    ('a second default', 'elif not any(isinstance(o, DefaultMemoryLength) for o in self.cbs)', 'else', 'default'),
    ('nobody is told', 'if self._untold != 10: return', 'return', 'length'),
    ('epochs are as long as announced', 'epoch = self._done/self._epochs if self._epochs else', 'epoch =', 'length'),
    ('counts go on in the next fit', 'if self.begins_fit(): self.len_memory,',
     'if not self._batches: self.len_memory,', 'memory_length length'),
    ('a validation begins a fit', 'def after_fit(self): self._is_new = False', 'def after_fit(self): pass', 'length given'),
    ('batches of validation count', 'TrainEvalCallback.order+1,False', 'TrainEvalCallback.order+1,True', 'memory_length default'),
    ('a skipped step does not count', 'self._steps += scaler_skipped(self.learn)', 'pass', 'seams'),
    ('epochs and the whole fit exchanged', 'self.n_epochs if self.epochs is None else 1',
     '1 if self.epochs is None else self.n_epochs', 'memory_length'),
    ('no least length', 'max(least_memory, self._length())', 'max(1, self._length())', 'memory_length'),
    # fused: what is traced
    ('the same tensor twice', 'if taken or slots.count(slot)>1:', 'if taken:', 'fused'),
    ('lerp is not exact', 'return x - x*weight + y*weight', 'return x + (y-x)*weight', 'fused'),
    ('an exponent that is not compiled in', "is_open = name!='pow' and", 'is_open =', 'fused'),
    # fused: what is stepped
    ('what is handed on is no copy', 'results[i] = results[i].clone()', 'results[i] = results[i]', 'fused'),
    ('no rounding between calls', 'res.to(rule.dtype) if rule.rounds else res', 'res', 'fused'),
    ('groups together', 'found[group,spec,why,rest]', 'found[0,spec,why,rest]', 'fused'),
    ('a state is replaced unseen', 'return bool(self.why) or _same(self._values(), self.values)', 'return True', 'fused'),
    ('data is replaced unseen', 'not_moved = all(map(Tensor.is_set_to,', 'not_moved = any(map(Tensor.is_set_to,', 'fused'),
    ('a plan for each set of gradients', 'if before is not None and not _same(params, before): return', 'if False: return', 'fused'),
    ('it is not seen that compilation is off', 'if not (self._is_ahead or compiles()):', 'if not compiles:', 'fused'),
    ('an old optimizer is taken as it is', 'self.__dict__.update(state)\n        self._forget()',
     'self.__dict__.update(state)', 'fused'),
    ('a flat tensor begins anywhere', 'is_whole = first.storage_offset()==0 and ', 'is_whole = ', 'fused'),
    ('what shares memory is in a bucket', ' or shared[o] > 1 for p,o in', ' for p,o in', 'fused'),
    ('hypers of other groups', 'hyper = self.hypers[o.group]', 'hyper = self.hypers[0]', 'fused'),
    # the check
    ('what is wrong is all right', "return any(o.result=='wrong' for o in rows)", 'return False', 'check'),
    ('an error of a check is no result', "except Exception as e: return Row(what, 'wrong',",
     "except Exception as e: return Row(what, 'not here',", 'check'),
    # callbacks
    ('rate and average exchanged', 'used = lr_avg/rate', 'used = rate/lr_avg', 'callback'),
    ('a skipped step skips the next ones', 'skipped,self._skipped = self._skipped,False',
     'skipped = self._skipped', 'callback training_loop'),
    ('histograms of the last fit stay', 'self._hists = []', "self._hists = getattr(self, '_hists', [])", 'callback'),
    ('means of the whole fit', 'self._epoch_start = len(self.steps)', 'self._epoch_start = 0', 'callback'),
    ('a rate at an lr of 0', "if not hyper['lr']: return torch.zeros_like(state['sqr_avg'])", '', 'callback'),
    # tasks
    ('validation on training data', '(blocks[:cut], blocks[cut::valid_step])', '(blocks[:cut], blocks[::valid_step])', 'tasks'),
    ('rows in both parts', 'slice(n_train, None)', 'slice(n_train-1, None)', 'tasks'),
    ('it sees ahead', 'q, k, v, is_causal=True)', 'q, k, v)', 'tasks'),
    # comparisons: a run
    ('data in the order of the last run', "if hasattr(dl, 'rng'): dl.rng.seed(seed)", '', 'runs'),
    ('warmup last', 'combine_scheds([warmup,1-warmup],', 'combine_scheds([1-warmup,warmup],', 'runs'),
    ('threads stay as they were in a run', 'finally: torch.set_num_threads(n)\n', 'finally: pass\n', 'runs engines'),
    # comparisons: when a run is reused
    ('a trial of two epochs', 'def trial(get_learner, opt_func, cbs=None, n_epoch=3):',
     'def trial(get_learner, opt_func, cbs=None, n_epoch=2):', 'identity'),
    ('other losses are the same', 'rtol=1e-3, atol=1e-6, equal_nan=True', 'rtol=1., atol=1e-6, equal_nan=True', 'identity'),
    ('globals do not count', 'held, vars(o), self.named(o), module_of(o)]', 'held, vars(o), module_of(o)]', 'identity'),
    ('defaults do not count', '[o.__code__, o.__defaults__, o.__kwdefaults__, held', '[o.__code__, o.__kwdefaults__, held', 'identity'),
    ('closures do not count', 'o.__kwdefaults__, held, vars(o)', 'o.__kwdefaults__, vars(o)', 'identity'),
    ('patches do not count', '(type(o), *patches(o))', '(type(o),)', 'identity'),
    ('data do not count', "'data': data, **code", '**code', 'identity'),
    # comparisons: what is kept
    ('a loss of NaN in JSON', 'parse_constant=lambda _: None', 'parse_constant=float', 'store'),
    ('a file in its place at once', 'part = path.with_name(', 'part = path or path.with_name(', 'store'),
    # comparisons: processes
    ('runs go on after an error', 'for f,_ in futures: f.cancel()', 'pass', 'engines'),
    ('a module stays as its file has it', 'for o in own.values(): cloudpickle.register_pickle_by_value(o)\n', 'pass\n', 'engines'),
    ('a worker has the first environment', 'os.environ.update(environ)', 'pass', 'engines'),
    ('many threads in an executor', 'return train_job(functions, job),None', 'return train_job(functions, job, False),None', 'engines'),
    # comparisons: tables and figures
    ('each of the best has a star', "alone = top.groupby('lr').transform('sum') == 1",
     "alone = top.groupby('lr').transform('sum') >= 1", 'compare'),
    ('losses of the worst rate', 'best = mean.idxmin if _lower(metric, lower) else mean.idxmax', 'best = mean.idxmin', 'compare'),
    ('mean and deviation exchanged', 'mid,std = curves.mean(),curves.std().fillna(0)',
     'std,mid = curves.mean(),curves.std().fillna(0)', 'compare'),
    ('the last seed first', "key=lambda o: o[1]['seed'])", "key=lambda o: -o[1]['seed'])", 'store runs'),
]]

if __name__ == '__main__': sys.exit(main())
