"Each module has one subject, uses only those before it, and can be held in one's head"
import ast, re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

package = Path(__file__).resolve().parent.parent/'adamod_fastai'
the_map = (package.parent/'CONTRIBUTING.md').read_text(encoding='utf-8').split('## The map')[1].split('\n## ')[0]

def file_of(module):
    "The module as a path from the package, without `.py`"
    path = module.replace('.', '/')
    return f'{path}/__init__' if (package/path).is_dir() else path

ROOMS = [*map(file_of, reversed(re.findall(r'(?m)^\| `([a-z_.]+)` \|', the_map)))]

def module_of(name, o):
    "The modules of the package that the import `o` in module `name` is of"
    here = ['adamod_fastai',*name.split('/')]
    where = ('.'.join(here[:-o.level]+[o.module or '']) if o.level else o.module).removeprefix('adamod_fastai').strip('.')
    path = where.replace('.', '/')
    return f'{path}/__init__' if (package/path/'__init__.py').is_file() and path else path

def uses(name):
    "The modules of the package that a module imports, anywhere in it"
    found = [o for o in ast.walk(ast.parse((package/f'{name}.py').read_text())) if isinstance(o, (ast.Import,ast.ImportFrom))]
    assert not any('adamod_fastai' in a.name for o in found if isinstance(o, ast.Import) for a in o.names)
    return {module_of(name, o) for o in found if isinstance(o, ast.ImportFrom) and (o.level or o.module.startswith('adamod_fastai'))}

def test_the_map_has_all_the_modules():
    found = {o.relative_to(package).with_suffix('').as_posix() for o in package.rglob('*.py')}
    assert found == {*ROOMS,'__init__','_modidx','compare/__main__'}

@pytest.mark.parametrize('name', ROOMS)
def test_uses_only_what_stands_before_it(name): assert uses(name) <= set(ROOMS[:ROOMS.index(name)])

def defined(name):
    "The names of functions, classes and values that a module defines, but for what fastcore's `patch` and `patch_to` add to a class"
    for o in ast.parse((package/f'{name}.py').read_text()).body:
        patched = any(ast.unparse(d).startswith('patch') for d in getattr(o, 'decorator_list', []))
        if isinstance(o, (ast.FunctionDef,ast.ClassDef)) and not patched: yield o.name
        if isinstance(o, ast.Assign): yield from (t.id for v in o.targets for t in ast.walk(v) if isinstance(t, ast.Name))

@pytest.mark.parametrize('name', ROOMS)
def test_an_underscore_means_not_used_elsewhere(name):
    found = [o for o in ast.walk(ast.parse((package/f'{name}.py').read_text())) if isinstance(o, ast.ImportFrom)]
    assert [a.name for o in found if o.level or o.module.startswith('adamod_fastai') for a in o.names if a.name.startswith('_')] == []

def test_a_name_is_one_thing():
    where = {}
    for room in ROOMS:
        for o in set(defined(room))-{'__all__'}: where.setdefault(o, []).append(room)
    assert not {k:v for k,v in where.items() if len(v) > 1}

_spec = spec_from_file_location('density', package.parent/'tools'/'density.py')
density = module_from_spec(_spec)
_spec.loader.exec_module(density)

@pytest.mark.parametrize('name', ROOMS)
def test_is_not_dense(name): assert density.measure(package/f'{name}.py')[1] <= 10

def test_the_step_knows_no_rule():
    parts = {o for o in ROOMS if o.startswith('fused/')}
    assert len(parts) == 5 and set().union(*map(uses, parts)) == {'base',*parts}-{'fused/__init__'}

def test_all_is_what_a_user_types():
    import adamod_fastai.all as all_
    names = {o for o in vars(all_) if not o.startswith('_')}
    assert {'AdaMod','DiffMod','DiffGrad','DeepMemory','FusedOptimizer','MemoryLength','ClippedFraction','RateHistogram','known_opts',
            'compare','compare_table','opt_styles','plot_metric','plot_losses','average_lr','clip_rate','rate_step'} <= names
    assert not {o for o in names if o=='main' or o.endswith(('_learner','_dls'))}

def test_the_comparison_takes_little_from_the_rest():
    took = set().union(*(uses(o) for o in ROOMS if o.startswith('compare/')))
    assert {o for o in took if not o.startswith('compare/')} == {'memory','optimizer','callback'}
