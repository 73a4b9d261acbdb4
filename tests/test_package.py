"What is released: an sdist and a wheel of it, which install and import, and their description on a package index"
import os, re, subprocess, sys, sysconfig, tarfile, zipfile
from email import message_from_bytes
from pathlib import Path
from shutil import which

import pytest

pytest.importorskip('build')
from test_project import root, settings, tracked, tracked_copy

def run(*args, **kwargs):
    env = {k: v for k,v in os.environ.items() if k != 'PYTHONPATH'}
    res = subprocess.run([str(o) for o in args], env=env, capture_output=True, text=True, **kwargs)
    assert res.returncode == 0, res.stdout[-2000:]+res.stderr[-4000:]
    return res.stdout

@pytest.fixture(scope='module')
def dist(tmp_path_factory):
    "The folder with what `python -m build` makes: the sdist, and of that the wheel"
    tmp = tmp_path_factory.mktemp('dist')
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp/'out', tracked_copy(tmp/'copy'))
    return tmp/'out'

@pytest.fixture(scope='module')
def description(dist):
    with zipfile.ZipFile(only(dist, '*.whl')) as z: return message_from_bytes(z.read(only(zipfile.Path(z), '*.dist-info').name+'/METADATA'))

def only(folder, pattern):
    res, = (o for o in folder.iterdir() if Path(o.name).match(pattern))
    return res

def test_both_are_named_as_the_release_expects(dist):
    name = f"{settings['lib_name']}-{settings['version']}"
    assert {o.name for o in dist.iterdir()} == {f'{name}.tar.gz', f'{name}-py3-none-any.whl'}

def test_they_hold_the_package_and_no_more(dist):
    package = {o for o in tracked() if o.parts[0] == settings['lib_name']}
    assert Path(settings['lib_name'])/'py.typed' in package
    with zipfile.ZipFile(only(dist, '*.whl')) as z: wheel = {Path(o) for o in z.namelist() if '.dist-info/' not in o}
    with tarfile.open(only(dist, '*.tar.gz')) as t: sdist = {Path(*Path(o.name).parts[1:]) for o in t if o.isfile()}
    assert wheel == package
    made = {Path('PKG-INFO'),Path('setup.cfg')}
    assert {o for o in sdist-made if '.egg-info' not in o.parts[0]} == package | {Path(o) for o in
        'settings.ini setup.py pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md CONTRIBUTING.md'.split()}

ASKED = """
import importlib, sys
from importlib.metadata import distribution
lib = sys.argv[1]
m = importlib.import_module(f'{lib}.all')
print(m.__file__, m.AdaMod.__name__)
sys.argv = ['adamod-compare','--help']
for o in distribution(lib).entry_points.select(name='adamod-compare', group='console_scripts'): o.load()()
"""

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['whl','tar.gz'])
def test_it_installs_and_imports(dist, kind, tmp_path):
    "In an environment of its own, which has of this one only what the package requires"
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path/'venv')
    scripts = tmp_path/'venv'/Path(sys.executable).parent.name
    here = run(scripts/'python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    (Path(here)/'required.pth').write_text(sysconfig.get_path('purelib'))
    run(sys.executable, '-m', 'pip', '--python', scripts/'python', 'install', '--no-deps', '--no-index', '--no-build-isolation',
        '--ignore-installed', only(dist, f'*.{kind}'))
    lib = settings['lib_name']
    out = run(scripts/'python', '-c', ASKED, lib, cwd=tmp_path)
    assert out.split()[:2] == [str(Path(here)/lib/'all.py'), 'AdaMod'] and 'usage: adamod-compare' in out
    assert which('adamod-compare', path=scripts)

LINK = re.compile(r'(!?)\[([^\]]*)\]\((\S+?)\)')

def test_pictures_and_links_of_the_description_are_absolute(description):
    "They lead to files that are in the repository, and are those of the README"
    url,version = settings['git_url'],settings['version']
    ours = f'{url}/blob/{version}/',f"{url.replace('github.com','raw.githubusercontent.com')}/{version}/"
    there = LINK.findall(description.get_payload(decode=True).decode())
    for picture,text,to in LINK.findall((root/'README.md').read_text(encoding='utf-8')):
        if not to.startswith('https:'):
            assert Path(to.partition('#')[0]) in tracked()
            to = ours[bool(picture)]+to
        assert (picture,text,to) in there
    assert len(there) == len(LINK.findall((root/'README.md').read_text(encoding='utf-8'))) and any(o[0] for o in there)

def test_the_address_stands_once(description):
    "In settings.ini, where everything else has it from"
    name = settings['git_url'].removeprefix('https://')
    assert dict(o.split(', ') for o in description.get_all('Project-URL'))['Repository'] == settings['git_url']
    made = Path('nbs/index.ipynb'),Path('README.md')     # a reader copies it from there
    text = (o for o in tracked() if o.suffix in ('.py','.toml','.ini','.md','.yml','.yaml','.sh','.ipynb') and o not in made)
    assert [str(o) for o in text if name in (root/o).read_text(encoding='utf-8')] == ['settings.ini']

def test_the_readme_installs_from_the_address():
    assert f"pip install git+{settings['git_url']}" in (root/'README.md').read_text(encoding='utf-8')
