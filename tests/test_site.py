"The site: every page there and whole, and what a real browser makes of it"
import json, re, subprocess, sys
from html import unescape
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

def frames(site, name, urls, width=800, script=''):
    "Write a page that shows those at `urls` as frames, and runs a script when they are loaded"
    shown = '\n'.join(f'<iframe src="{o}" width="{width}" height="800"></iframe>' for o in urls)
    head = '<meta charset="utf-8"><title></title>'
    (site.parent/name).write_text(f'<html><head>{head}</head><body>{shown}<script>{script}</script></body></html>')
    return name

def test_errors_would_be_seen(browse, server, site):
    "Also in a frame"
    url,missing = server
    (site.parent/'bad.html').write_text('<html><script src="missing.js"></script><script>nothing()</script></html>')
    del missing[:]
    assert 'nothing is not defined' in browse(f'{url}/{frames(site, "framed.html", ["bad.html"])}')[1][0]
    assert missing==['/missing.js']

def test_source_link_unfolds_the_source(browse, site):
    dom,_ = browse((site/'optimizer.html').as_uri()+'#source-AdaMod')
    assert re.search('<details class="source" open="[^<]*<summary>Source of AdaMod</summary><a id="source-AdaMod"', dom)

# Scripts that look at all pages: each returns the elements of a page that are wrong
PHONE = dict(
    wide="""return [...doc.querySelectorAll('html, .content')].filter(e => e.scrollWidth > e.clientWidth)""",
    small="""return [...doc.querySelectorAll('article img')].filter(e => e.clientWidth < 0.46*e.naturalWidth)""",
    broken="""
        const lines = node => { const r = doc.createRange(); r.selectNodeContents(node); return r.getClientRects().length }
        const broken = o => o.nodeType==3 && o.textContent.trim() && lines(o)>1
        return [...doc.querySelectorAll('.cell_output td')].filter(e => [...e.childNodes].some(broken))""")
LAPTOP = dict(
    cut="""
        const wide = [...doc.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth+1)
        const long = [...doc.querySelectorAll('article .highlight pre')].filter(e => {
            const text = e.textContent.trimEnd().split('\\n'), style = getComputedStyle(e)
            if (!e.clientHeight || !text.every(o => o.length <= 100)) return false
            const height = e.clientHeight - parseFloat(style.paddingTop) - parseFloat(style.paddingBottom)
            return height > (text.length+0.5)*parseFloat(style.lineHeight) })
        return [...wide, ...long]""",
    pale="""
        const rgb = s => s.match(/[\\d.]+/g).map(Number)
        const linear = o => o <= .03928 ? o/12.92 : ((o+.055)/1.055)**2.4
        const light = s => { const [r,g,b] = rgb(s).map(o => linear(o/255)); return .2126*r + .7152*g + .0722*b }
        const behind = e => {
            const color = getComputedStyle(e).backgroundColor
            return (rgb(color)[3] ?? 1) > .5 || !e.parentElement ? color : behind(e.parentElement) }
        const contrast = e => {
            const [a,b] = [light(getComputedStyle(e).color), light(behind(e))].sort((a,b) => b-a)
            return (a+.05)/(b+.05) }
        return [...doc.querySelectorAll('table :is(th, td)')].filter(e => e.textContent.trim() && contrast(e) < 4.5)""",
    formulas="""return [...doc.querySelectorAll('mjx-container')]""",
    wrong_formulas="""return [...doc.querySelectorAll('[data-mjx-error]')]""")

@pytest.fixture(scope='session')
def look(browse, server, site, pages):
    "A function that opens all pages at a width: what each script finds on each page, what the console said, and what was missing"
    url,missing = server
    def f(width, theme, scripts):
        code = ', '.join(f'{k}: doc => {{ {o} }}' for k,o in scripts.items())
        script = f"""onload = () => setTimeout(() => {{
            const scripts = {{ {code} }}, name = e => (e.alt || e.textContent.trim()).slice(0, 40).replace(/\\s+/g, ' ')
            const found = Object.fromEntries(Object.keys(scripts).map(k => [k, {{}}]))
            for (const o of document.querySelectorAll('iframe')) {{
                o.contentDocument.body.dataset.theme = '{theme}'
                for (const k in scripts) found[k][o.getAttribute('src').slice(4)] = scripts[k](o.contentDocument).map(name) }}
            document.title = 'found: ' + JSON.stringify(found) }}, 5000)"""
        del missing[:]
        dom,console = browse(f'{url}/{frames(site, f"at_{width}.html", [f"out/{o}" for o in pages], width, script)}')
        return json.loads(unescape(re.search('<title>found: (.*?)</title>', dom, re.S)[1])),console,[*missing]
    return f

@pytest.fixture(scope='session')
def on_a_phone(look): return look(390, 'light', PHONE)

@pytest.fixture(scope='session')
def in_the_dark(look): return look(1280, 'dark', LAPTOP)

def wrong(seen, name): return {page: o for page,o in seen[0][name].items() if o}

def test_pages_load_all_they_need_without_an_error(on_a_phone, in_the_dark):
    for _,console,missing in on_a_phone,in_the_dark: assert console==missing==[]

@pytest.mark.parametrize('nb', notebooks, ids=str)
def test_formulas_of_a_page(in_the_dark, pages, nb):
    name = nbpath2html(nb).as_posix()
    assert pages[name].n_math or not re.search(r'\$[^$]+\$', (root/'nbs'/nb).read_text(encoding='utf-8'))
    assert len(in_the_dark[0]['formulas'][name]) == pages[name].n_math
    assert in_the_dark[0]['wrong_formulas'][name] == []

def test_no_page_is_wider_than_a_phone(on_a_phone): assert wrong(on_a_phone, 'wide') == {}

def test_a_phone_shows_pictures_large_enough_to_read(on_a_phone):
    "That is, none is drawn wider than 7 inches"
    assert wrong(on_a_phone, 'small') == {}

def test_a_phone_breaks_no_number_in_a_table(on_a_phone): assert wrong(on_a_phone, 'broken') == {}

def test_a_laptop_shows_whole_lines_of_code(in_the_dark):
    "None is cut off at the right, and at least 100 characters are in one line"
    assert wrong(in_the_dark, 'cut') == {}

def test_tables_can_be_read_in_the_dark(in_the_dark): assert wrong(in_the_dark, 'pale') == {}

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
