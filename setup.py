"What settings.ini says of the package, and the README as its description"
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='], interpolation=None)
cfg.read(here/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
lib,version,url = cfg['lib_name'],cfg['version'],cfg['git_url']
owner,repo = url.split('/')[-2:]

def absolute(md):
    "`md`, with the pictures and files of the repository under the address that this version has them at"
    file,picture = f'{url}/blob/{version}',f'https://raw.githubusercontent.com/{owner}/{repo}/{version}'
    def f(m): return m[0] if m[1] else f"{m[2] or ''}]({picture if m[2] else file}/"
    return re.sub(r'(?ms)(^```.*?^```)|(!\[[^\]]*)?\]\((?!\w+:|#)', f, md)

setup(
    name=lib, version=version, description=cfg['description'], keywords=cfg['keywords'].split(), author=cfg['author'],
    license_expression=cfg['license'], license_files=['LICENSE'], packages=find_packages(include=[lib, f'{lib}.*']),
    python_requires=f">={cfg['min_python']}",
    project_urls={'Repository': url, 'Documentation': f'https://{owner}.github.io/{repo}/', 'Issues': f'{url}/issues',
                  'Changelog': f'{url}/blob/main/CHANGELOG.md'},
    classifiers=['Development Status :: 4 - Beta', 'Intended Audience :: Developers', 'Intended Audience :: Science/Research',
                 'Operating System :: OS Independent', 'Topic :: Scientific/Engineering :: Artificial Intelligence', 'Typing :: Typed',
                 'Programming Language :: Python :: 3 :: Only',
                 *(f'Programming Language :: Python :: {o}' for o in cfg['tested_pythons'].split())],
    long_description=absolute((here/'README.md').read_text(encoding='utf-8')), long_description_content_type='text/markdown',
    install_requires=cfg['requirements'].split(), extras_require={'dev': cfg['dev_requirements'].split()},
    entry_points={'console_scripts': cfg['console_scripts'].split(), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
