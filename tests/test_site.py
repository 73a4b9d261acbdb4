"The site: every page there and whole, and what a real browser makes of it"
import re, subprocess, sys
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from threading import Thread
from urllib.parse import quote_plus, unquote, urlsplit

import pytest
from nbdev.config import nbpath2html

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(sys.version_info < (3,11), reason='myst-parser for Python 3.10 gives headings other addresses')]

root = Path(__file__).resolve().parent.parent
notebooks = sorted(o.relative_to(root/'nbs') for o in (root/'nbs').rglob('*.ipynb'))
notebooks = [o for o in notebooks if not any(p[0] in '._' for p in o.parts)]


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


def test_api_pages_begin_with_what_they_document_and_fold_their_source(site):
    page = (site/'optimizer.html').read_text(encoding='utf-8')
    assert page.index('href="#adamod_fastai.optimizer.AdaMod"') < page.index('<h2')
    assert '<details class="source">' in page and '<details class="source" open' not in page


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
    dom,_ = browse((site/'optimizer.html').as_uri()+'#source-AdaMod')
    assert re.search('<details class="source" open="[^<]*<summary>Source of AdaMod</summary><a id="source-AdaMod"', dom)

@pytest.fixture(scope='session')
def none_wrong(browse, server, site, pages):
    "A function that opens all pages at a width, and fails with the elements that a script finds wrong on them"
    def f(width, script, theme='light'):
        frames = '\n'.join(f'<iframe src="out/{o}" width="{width}" height="800"></iframe>' for o in pages)
        look = f"""onload = () => setTimeout(() => {{
            const wrong = doc => {{ {script} }}
            const found = [...document.querySelectorAll('iframe')].flatMap(o => {{
                const doc = o.contentDocument
                doc.body.dataset.theme = '{theme}'
                const name = e => (e.alt || e.textContent.trim()).slice(0, 40).replace(/\\s+/g, ' ')
                return wrong(doc).map(e => o.getAttribute('src') + ': ' + name(e))
            }})
            document.title = 'wrong: ' + found.join(' | ') }}, 5000)"""
        head = '<meta charset="utf-8"><title></title>'
        (site.parent/'all.html').write_text(f'<html><head>{head}</head><body>{frames}<script>{look}</script></body></html>')
        res = re.search('<title>wrong: (.*?)</title>', browse(f'{server[0]}/all.html')[0], re.S)
        assert not res[1], '\n'.join(['', *res[1].split(' | ')])
    return f

def test_no_page_is_wider_than_a_phone(none_wrong):
    none_wrong(390, "return [...doc.querySelectorAll('html, .content')].filter(e => e.scrollWidth > e.clientWidth)")

def test_a_phone_shows_pictures_large_enough_to_read(none_wrong):
    "That is, none is drawn wider than 7 inches"
    none_wrong(390, "return [...doc.querySelectorAll('article img')].filter(e => e.clientWidth < 0.46*e.naturalWidth)")

def test_a_phone_breaks_no_number_in_a_table(none_wrong):
    none_wrong(390, """
        const lines = node => { const r = doc.createRange(); r.selectNodeContents(node); return r.getClientRects().length }
        const broken = o => o.nodeType==3 && o.textContent.trim() && lines(o)>1
        return [...doc.querySelectorAll('.cell_output td')].filter(e => [...e.childNodes].some(broken))
        """)

def test_a_laptop_shows_whole_lines_of_code(none_wrong):
    "None is cut off at the right, and at least 100 characters are in one line"
    none_wrong(1280, """
        const wide = [...doc.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth+1)
        const long = [...doc.querySelectorAll('article .highlight pre')].filter(e => {
            const text = e.textContent.trimEnd().split('\\n'), style = getComputedStyle(e)
            if (!e.clientHeight || !text.every(o => o.length <= 100)) return false
            const height = e.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom)
            return height > (text.length+0.5)*parseFloat(style.lineHeight) })
        return [...wide, ...long]""")

def test_tables_can_be_read_in_the_dark(none_wrong):
    none_wrong(1280, """
        const rgb = s => s.match(/[\\d.]+/g).map(Number)
        const linear = o => o <= .03928 ? o/12.92 : ((o+.055)/1.055)**2.4
        const light = s => { const [r,g,b] = rgb(s).map(o => linear(o/255)); return .2126*r + .7152*g + .0722*b }
        const behind = e => {
            const color = getComputedStyle(e).backgroundColor
            return (rgb(color)[3] ?? 1) > .5 || !e.parentElement ? color : behind(e.parentElement) }
        const contrast = e => {
            const [a,b] = [light(getComputedStyle(e).color), light(behind(e))].sort((a,b) => b-a)
            return (a+.05)/(b+.05) }
        return [...doc.querySelectorAll('table :is(th, td)')].filter(e => e.textContent.trim() && contrast(e) < 4.5)""", 'dark')

@pytest.mark.parametrize('asked,first', [
    ('ClippedFraction','#adamod_fastai.callback.ClippedFraction'), ('AdaMod','#adamod_fastai.optimizer.AdaMod'),
    ('learning rate','tutorials/rates.html'), ('fine_tune','tutorials/fine_tune.html')])
@pytest.mark.parametrize('where', ['files','server'])
def test_search(browse, server, site, where, asked, first):
    base = site.as_uri() if where=='files' else f'{server[0]}/out'
    dom,console = browse(f'{base}/search.html?q={quote_plus(asked)}')
    assert console == []
    found = re.search(r'id="search-results".*?<a href="([^"]*)', dom, re.S)
    assert found and found[1].removesuffix('#').endswith(first)
