"The notebooks run, and the package and README are what they give"
import filecmp, json, os, re, shutil, subprocess, sys
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest
import yaml

from other_machine import machine_env

root = Path(__file__).resolve().parent.parent
notebooks = sorted(o.relative_to(root) for o in root.glob('nbs/**/*.ipynb') if '.ipynb_checkpoints' not in o.parts)
command = lambda name: str(Path(sys.executable).parent/name)

_settings = ConfigParser(delimiters=['='], interpolation=None)
_settings.read(root/'settings.ini', encoding='utf-8')
settings = _settings['DEFAULT']

@cache
def tracked(root=root):
    "The files that git tracks, and new ones beside them: an environment in the clone, whatever its name, is neither"
    def ls(*args):
        files = subprocess.run(['git','ls-files','-z',*args], cwd=root, capture_output=True, text=True, check=True).stdout
        return {Path(o) for o in files.split('\0') if o and (root/o).is_file()}
    known = ls()
    folders = {o.parent for o in known}
    return sorted(known | {o for o in ls('-o','--exclude-standard') if o.parent in folders})

def tracked_copy(to):
    "They, copied to the folder `to`"
    for f in tracked():
        (to/f).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root/f, to/f)
    return to

@pytest.fixture(scope='module')
def executed(tmp_path_factory):
    "Executes a page as on another machine: its exit status, and what it wrote"
    env = dict(machine_env(1), MPLBACKEND='Agg', OMP_NUM_THREADS='1')  # small tensors
    log = tmp_path_factory.mktemp('pages')/'log'
    args,pipe = [sys.executable,'-W','ignore','tests/pages.py'],subprocess.PIPE
    with (log.open('w') as f, log.open() as said,
          subprocess.Popen(args, cwd=root, env=env, text=True, stdin=pipe, stdout=pipe, stderr=f) as p):
        def execute(nb):
            print(nb, file=p.stdin, flush=True)
            return p.stdout.readline().strip(),said.read()
        yield execute

@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, 'fork'), reason='pages are executed in forked processes: `nbdev-test` does it without')
@pytest.mark.parametrize('nb', notebooks, ids=str)
def test_notebook_runs(nb, executed):
    "As on another machine: what a page says of its trainings holds there too"
    status,said = executed(nb)
    assert status == '0', said

def test_an_environment_in_the_clone_is_not_read(tmp_path):
    "Nor what lies in it; a new file is, before it is committed"
    subprocess.run(['git','init','-q',tmp_path], check=True)
    for o in ('package/old.py','package/new.py','myenv/lib/latin1.py','package/myenv/lib/latin1.py'):
        (tmp_path/o).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/o).write_bytes(b'# \xe9')
    subprocess.run(['git','add','package/old.py'], cwd=tmp_path, check=True)
    assert tracked(tmp_path) == [Path('package/new.py'),Path('package/old.py')]

def test_export_changes_nothing(tmp_path):
    copy = tracked_copy(tmp_path)
    subprocess.run([command('nbdev-export')], cwd=copy, check=True, capture_output=True)
    files = {o.relative_to(d) for d in (root/'adamod_fastai',copy/'adamod_fastai') for o in d.rglob('*.py')}
    differ = filecmp.cmpfiles(root/'adamod_fastai', copy/'adamod_fastai', files, shallow=False)
    assert not differ[1]+differ[2]

def test_clean_changes_nothing(tmp_path):
    copy = tracked_copy(tmp_path)
    subprocess.run([command('nbdev-clean')], cwd=copy, check=True, capture_output=True)
    assert [str(o) for o in notebooks if (root/o).read_text() != (copy/o).read_text()] == []

def test_readme_is_what_the_index_gives():
    res = subprocess.run([sys.executable,'docs/readme.py','--check'], cwd=root, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr

readme = (root/'README.md').read_text(encoding='utf-8')

@pytest.mark.slow
def test_readme_blocks_run_one_after_the_other_in_a_new_process(tmp_path):
    blocks = re.findall('(?ms)^```python\n(.*?)^```', readme)
    assert len(blocks) >= 4 and 'opt_func=AdaMod' in blocks[1]
    env = dict(os.environ, MPLBACKEND='Agg', OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(root),str(root/'tests')]))
    res = subprocess.run([sys.executable,'-c','\n'.join(blocks)], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert res.returncode == 0, res.stderr[-2000:]

def test_readme_is_read_in_three_minutes():
    "At most 800 words beside code, tables and the descriptions of pictures"
    prose = re.sub(r'(?ms)^```.*?^```|<table.*?</table>|^\|.*?$|!\[[^\]]*\]\([^)]*\)|(?<=\])\([^)]*\)', '', readme)
    assert len([o for o in prose.split() if re.search(r'\w', o)]) <= 800

def test_readme_asks_for_what_settings_do():
    fastai = re.search(r'fastai>=([\d.]+)', settings['requirements'])[1]
    assert f"Python {settings['min_python']} or newer" in readme and f'fastai {fastai} or newer' in readme

def cells_of(nb): return json.loads((root/nb).read_text(encoding='utf-8'))['cells']

@pytest.mark.parametrize('nb', notebooks, ids=str)
def test_notebook_shows_nothing_of_the_machine_it_ran_on(nb):
    shown = json.dumps([o.get('outputs') for o in cells_of(nb)])
    assert not re.findall(r'site-packages|ipykernel_\d+|/home/|/root/|/tmp/', shown)

@pytest.mark.parametrize('nb', notebooks, ids=str)
def test_losses_that_are_shown_come_out_again(nb):
    "`set_seed` stands before the first fit whose losses are shown"
    code = [o for o in cells_of(nb) if o['cell_type'] == 'code']
    source = [''.join(o['source']) for o in code]
    shows_losses = [bool(re.search(r'train_loss|\[0, \d', json.dumps(o['outputs']))) for o in code]
    fits = [i for i,o in enumerate(source) if shows_losses[i] and re.search(r'\.fit|fine_tune\(', o)]
    assert not fits or any('set_seed(' in o for o in source[:fits[0]+1])

tutorials = [o for o in notebooks if o.parent.name == 'tutorials' and o.stem != 'elsewhere']     # that one is a table

@pytest.mark.parametrize('nb', tutorials, ids=str)
def test_a_tutorial_begins_with_a_picture(nb):
    cells = cells_of(nb)
    is_section = lambda o: o['cell_type'] == 'markdown' and any(l.startswith('## ') for l in o['source'])
    first = next((i for i,o in enumerate(cells) if is_section(o)), len(cells))
    assert any('image/png' in out.get('data', {}) for o in cells[:first] for out in o.get('outputs', []))

def test_no_page_trains_for_the_stored_results():
    "They read the tables, which are all that is stored: what a run is may change without training for hours to build the site"
    stored = {o.name for o in tracked() if o.parts[:2] == ('nbs','results')}
    assert {Path(o).suffix for o in stored} == {'.csv'}
    code = [''.join(o['source']) for nb in notebooks for o in cells_of(nb) if o['cell_type']=='code']
    assert [o for o in code if re.search(r'out=f?[\'"](\.\./)*results', o)] == []

def test_no_line_is_too_long():
    "What the site and an editor show of a line"
    code = [o for o in tracked() if o.suffix == '.py' and o.name != '_modidx.py']     # nbdev's own index
    assert [f'{o}:{i}' for o in code for i,l in enumerate((root/o).read_text(encoding='utf-8').splitlines(), 1) if len(l) > 140] == []

def test_changes_are_dated():
    "What is not released yet, then the versions, the newest first and the one that settings.ini has"
    first,*rest = re.findall('(?m)^## (.*)', (root/'CHANGELOG.md').read_text(encoding='utf-8'))
    versions,dates = zip(*(re.fullmatch(r'(\d+\.\d+\.\d+) \((\d{4}-\d\d-\d\d)\)', o).groups() for o in rest))
    assert first == 'Unreleased' and versions[0] == settings['version']
    for o in dates,[tuple(map(int, v.split('.'))) for v in versions]: assert list(o) == sorted(o, reverse=True)

def test_workflows_do_what_a_person_does():
    "Their commands are those of CONTRIBUTING.md and .ci/run; the tests run on the oldest and the newest Python"
    flows = {o.stem: yaml.safe_load(o.read_text()) for o in root.glob('.github/workflows/*.yaml')}
    steps = [o for flow in flows.values() for job in flow['jobs'].values() for o in job.get('steps', [])]
    told = (root/'CONTRIBUTING.md').read_text(encoding='utf-8')
    ran = {o['run'] for o in steps if 'run' in o and 'name' not in o}
    assert {o for o in ran if o not in told} == {'bash .ci/run'} and {'python docs/build.py','python -m build'} <= ran
    assert flows['test']['jobs']['all']['strategy']['matrix']['python'] == [settings['min_python'],settings['max_python']]

def test_version_stands_once():
    from importlib.metadata import version
    import adamod_fastai
    assert adamod_fastai.__version__ == version('adamod_fastai') == settings['version']
    others = *root.glob('*.py'),*root.glob('adamod_fastai/*.py'),root/'pyproject.toml'
    assert [o for o in others if settings['version'] in o.read_text()] == []
