"Every file in the oldest and the newest Python, and a fit in each: `bash tests/pythons.sh FOLDER`, then `PYTHONS=FOLDER pytest`"
import os, shutil, subprocess, sys
from configparser import ConfigParser
from pathlib import Path

root = Path(__file__).resolve().parent.parent

def versions():
    "All minor versions that settings.ini admits"
    ini = ConfigParser(delimiters=['='], interpolation=None)
    ini.read(root/'settings.ini', encoding='utf-8')
    first,last = (int(ini['DEFAULT'][o].split('.')[1]) for o in ('min_python','max_python'))
    return [f'3.{o}' for o in range(first, last+1)]

def find(version):
    "A Python of this version: on the path, or as pyenv keeps them"
    pyenv = sorted(Path(os.environ.get('PYENV_ROOT', Path.home()/'.pyenv')).glob(f'versions/{version}.*/bin/python3'))
    for o in [shutil.which(f'python{version}'), *pyenv]:
        if o and subprocess.run([o,'-c',''], capture_output=True).returncode == 0: return str(o)

def oldest_and_newest():
    found = {v: p for v in versions() if (p := find(v))}
    return [(v,found[v]) for v in dict.fromkeys([next(iter(found)), list(found)[-1]])] if found else []

if __name__ == '__main__': sys.exit(print(*(p for _,p in oldest_and_newest())))

import pytest

from test_project import tracked

COMPILE = r"""
import ast, json, re, sys
for path in sys.stdin.read().split('\0'):
    text = open(path, encoding='utf-8').read()
    cells = [text] if path.endswith('.py') else [''.join(c['source']) for c in json.loads(text)['cells'] if c['cell_type'] == 'code']
    for o in cells:
        try: ast.parse(re.sub(r'(?m)^\s*[%!].*', '', o))
        except SyntaxError as e: print(path, e)
"""

@pytest.fixture(params=['oldest','newest'])
def python(request):
    found = oldest_and_newest()
    if not found: pytest.skip(f'no Python of {versions()} is to be had')
    return found[0 if request.param == 'oldest' else -1]

def test_every_file_compiles(python):
    files = [str(o) for o in tracked() if o.suffix in ('.py','.ipynb')]
    res = subprocess.run([python[1],'-c',COMPILE], input='\0'.join(files), cwd=root, capture_output=True, text=True)
    assert len(files) > 50 and (res.returncode,res.stdout) == (0,''), res.stdout+res.stderr

FIT = """
import importlib, pkgutil, adamod_fastai
for o in pkgutil.iter_modules(adamod_fastai.__path__): importlib.import_module(f'adamod_fastai.{o.name}')
from adamod_fastai.all import *
from adamod_fastai.compare.tasks import digits_learner
learn = digits_learner(AdaMod)
with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 1e-2, cbs=ClippedFraction())
print(learn.final_record[1:4])
assert learn.final_record[2] > 0.8 and learn.clipped_fraction.used[-1] > 0.8
"""

@pytest.mark.slow
def test_a_fit(python):
    version,_ = python
    here = Path(os.environ.get('PYTHONS', '/no'))/version/'bin'/'python'
    if version == '%d.%d' % sys.version_info[:2]: here = Path(sys.executable)
    if not here.exists(): pytest.skip(f'no environment with Python {version}: bash tests/pythons.sh FOLDER, and PYTHONS=FOLDER')
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(root),str(root/'tests')]), MPLBACKEND='Agg')
    res = subprocess.run([str(here),'-W','ignore','-c',FIT], cwd=root, env=env, capture_output=True, text=True)
    assert res.returncode == 0, res.stdout[-1000:]+res.stderr[-3000:]
