"The site: every page there and whole, and what a real browser makes of it"
import re, subprocess, sys
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest
from nbdev.config import nbpath2html

pytestmark = pytest.mark.slow

root = Path(__file__).resolve().parent.parent
notebooks = sorted(o.relative_to(root/'nbs') for o in (root/'nbs').rglob('*.ipynb'))
notebooks = [o for o in notebooks if not any(p[0] in '._' for p in o.parts)]
defines_callback = any('class ClippedFraction' in (root/'nbs'/o).read_text(encoding='utf-8') for o in notebooks)


class Page(HTMLParser):
    "The ids, links, pictures and resources of a page"
    def __init__(self, path):
        super().__init__()
        self.ids,self.links,self.images,self.resources,self.n_math = {''},[],[],[],0
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get('id'))
        if tag=='a' and 'href' in attrs: self.links.append(attrs['href'])
        if tag=='img': self.images.append(attrs)
        if tag=='link': self.resources.append(attrs['href'])
        self.resources += [attrs[o] for o in ('src','srcset','data','poster') if attrs.get(o) and tag!='a']
        self.n_math += 'math' in (attrs.get('class') or '').split()


@pytest.fixture(scope='session')
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp('site')/'out'
    res = subprocess.run([sys.executable, root/'docs'/'build.py', out], capture_output=True, text=True)
    assert (res.returncode, res.stdout, res.stderr) == (0, '', ''), 'the build must be silent'
    return out

@pytest.fixture(scope='session')
def pages(site): return {o.relative_to(site).as_posix(): Page(o) for o in sorted(site.rglob('*.html'))}


def is_local(url): return not urlsplit(url).scheme and not url.startswith('//')

def broken(site, pages, page, url):
    "Does the local `url`, as it stands on `page`, lead nowhere?"
    path,anchor = urlsplit(url).path,unquote(urlsplit(url).fragment)
    target = ((site/page).parent/unquote(path) if path else site/page).resolve()
    if not (target.is_file() and target.is_relative_to(site)): return True
    name = target.relative_to(site).as_posix()
    return name in pages and anchor not in pages[name].ids


@pytest.mark.parametrize('nb', notebooks, ids=str)
def test_page(pages, nb): assert nbpath2html(nb).as_posix() in pages

def test_landing_page_leads_to_every_notebook(pages):
    assert {nbpath2html(o).as_posix() for o in notebooks} - {'index.html'} <= set(pages['index.html'].links)

def test_no_broken_link(site, pages):
    assert [(p,u) for p,page in pages.items() for u in page.links+page.resources if is_local(u) and broken(site, pages, p, u)] == []

def test_pictures_have_alternative_text(pages):
    assert [(p,o) for p,page in pages.items() for o in page.images if not o.get('alt', '').strip()] == []

def test_nothing_from_outside(site, pages):
    assert [(p,u) for p,page in pages.items() for u in page.resources if not is_local(u) and not u.startswith('data:')] == []
    loads = re.compile(r'(?:url\(|@import\s+)["\']?([^"\')]+)')
    css = [(o.name,u) for o in site.rglob('*.css') for u in loads.findall(o.read_text(encoding='utf-8'))]
    assert [(o,u) for o,u in css if not is_local(u) and not u.startswith('data:')] == []

def test_names_lead_to_their_entry_and_entries_to_their_source(pages):
    page = pages['optimizer.html']
    assert {'adamod_fastai.optimizer.AdaMod','source-AdaMod'} <= page.ids
    assert {'#adamod_fastai.optimizer.AdaMod','optimizer.html#source-AdaMod'} <= set(page.links)


@pytest.fixture(scope='session')
def server(site):
    "The folder above the site, served: its address, and what was asked for and not there"
    missing = []
    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args): super().__init__(*args, directory=site.parent)
        def log_message(self, *args): pass
        def send_error(self, code, *args):
            if self.path!='/favicon.ico': missing.append(self.path)
            super().send_error(code, *args)
    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as httpd:
        Thread(target=httpd.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{httpd.server_port}', missing
        httpd.shutdown()

@pytest.fixture(scope='session')
def browse(tmp_path_factory):
    "A function that loads an address in Chromium: the page after its scripts have run, and what the console said"
    chromium = which('chromium') or which('chromium-browser') or which('google-chrome')
    if not chromium: pytest.skip('Chromium is not installed (Debian: apt-get install chromium)')
    flags = ['--headless', '--no-sandbox', '--disable-gpu', '--no-first-run', '--disable-background-networking', '--enable-logging=stderr',
             '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1', '--virtual-time-budget=10000',
             f'--user-data-dir={tmp_path_factory.mktemp("chromium")}']
    def f(url):
        res = subprocess.run([chromium, *flags, '--dump-dom', url], capture_output=True, encoding='utf-8', timeout=120)
        assert '</html>' in res.stdout, res.stderr
        return res.stdout, [o for o in res.stderr.splitlines() if 'CONSOLE' in o]
    return f

def test_errors_would_be_seen(browse, server, site):
    url,missing = server
    (site.parent/'bad.html').write_text('<html><script src="missing.js"></script><script>nothing()</script></html>')
    assert 'nothing is not defined' in browse(f'{url}/bad.html')[1][0]
    assert missing==['/missing.js']
    missing.clear()

@pytest.mark.parametrize('nb', notebooks, ids=str)
def test_page_in_a_browser(browse, server, pages, nb):
    url,missing = server
    name = nbpath2html(nb).as_posix()
    dom,console = browse(f'{url}/out/{name}')
    assert console==missing==[]
    assert pages[name].n_math or not re.search(r'\$[^$]+\$', (root/'nbs'/nb).read_text(encoding='utf-8'))
    assert dom.count('<mjx-container') == pages[name].n_math
    assert 'data-mjx-error=' not in dom

def test_source_link_unfolds_the_source(browse, site):
    dom,_ = browse((site/'core.html').as_uri()+'#source-ModOptimizer')
    assert re.search('<details class="source" open="[^<]*<summary>Source of ModOptimizer</summary><a id="source-ModOptimizer"', dom)

def test_no_page_is_wider_than_a_phone(browse, server, site, pages):
    frames = '\n'.join(f'<iframe src="out/{o}" width="390" height="800"></iframe>' for o in pages)
    script = """onload = () => setTimeout(() => {
        const scrolls = o => [...o.contentDocument.querySelectorAll('html, .content')].some(e => e.scrollWidth > e.clientWidth)
        const wide = [...document.querySelectorAll('iframe')].filter(scrolls)
        document.title = 'wide: ' + wide.map(o => o.getAttribute('src')) }, 5000)"""
    (site.parent/'phone.html').write_text(f'<html><head><title></title></head><body>{frames}<script>{script}</script></body></html>')
    dom,_ = browse(f'{server[0]}/phone.html')
    assert re.search('<title>(.*)</title>', dom)[1] == 'wide: '

@pytest.mark.parametrize('where', ['files','server'])
def test_search(browse, server, site, where):
    name = 'ClippedFraction' if defines_callback else 'AdaMod'
    base = site.as_uri() if where=='files' else f'{server[0]}/out'
    dom,console = browse(f'{base}/search.html?q={name}')
    assert console == []
    found = re.search(r'id="search-results".*?<a href="([^"]*)', dom, re.S)
    assert found and found[1].endswith(f'.{name}'), 'its API entry is the first result'
