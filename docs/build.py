"""Write the site from the notebooks: `python docs/build.py [folder]`, into `_docs` if no folder is given.

nbdev processes the notebooks, which runs their definitions for the API entries and nothing else (the outputs are the
committed ones); Sphinx and myst-nb make the pages. Pages are found, not listed: `kind` says where each belongs.
"""
import ast, inspect, os, re, sys, tempfile, textwrap, warnings
from importlib import import_module
from importlib.metadata import metadata
from operator import attrgetter
from pathlib import Path
from shutil import copy2, copytree, rmtree

warnings.filterwarnings('ignore', '.*torch.jit.script.*', FutureWarning)  # fastai's, at import

import nbdev.showdoc
from fastcore.docments import DocmentTbl
from fastcore.nbio import cell_frontmatter, mk_cell, nb_frontmatter, new_nb, read_nb, write_nb
from fastcore.utils import camel2snake
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import NbdevLookup, nbglob, patch_name
from nbdev.process import NBProcessor
from nbdev.processors import FilterDefaults
from sphinx.cmd.build import build_main

docs,cwd = Path(__file__).resolve().parent,Path.cwd()
os.chdir(docs.parent)  # nbdev looks there for its configuration
lib = get_config().lib_path.name
# 'AdaMod' -> ('adamod_fastai.optimizer', 'optimizer.html'): its module and its page
names = {name.removeprefix(f'{mod}.'): (mod, page.partition('#')[0])
         for mod,syms in import_module(f'{lib}._modidx').d['syms'].items() for name,(page,_) in syms.items()}


class Named:
    "A default value that is shown by its name"
    def __init__(self, o): self.name = o.__name__
    def __repr__(self): return self.name


class ApiEntry(nbdev.showdoc.BasicMarkdownRenderer):
    "What `show_doc` shows: Sphinx's entry for a name, which is searched and linked to, around nbdev's table"
    page,shown = '',{}
    def __init__(self, sym, *args, **kwargs):
        super().__init__(sym, *args, **kwargs)
        self.is_property = isinstance(sym, property)

    def _repr_markdown_(self):
        what = 'property' if self.is_property else 'class' if inspect.isclass(self.sym) else 'method' if '.' in self.nm else 'function'
        def default(o): return Named(o) if hasattr(o, '__name__') and o is not inspect.Parameter.empty else o
        params = [p.replace(annotation=p.empty, default=default(p.default))
                  for p in (self.sig.parameters if self.sig else {}).values() if p.name!='self']
        signature = '' if self.is_property else inspect.Signature(params)
        mod,page = names.get(self.nm, ('',''))
        options,source = f':module: {mod}\n',''
        if page: source = f'<a class="source-link" href="{os.path.relpath(page, Path(self.page).parent)}#source-{self.nm}">source</a>'
        if page!=self.page or self.shown.setdefault(self.nm, self) is not self: options += ':no-index:\n'
        table = DocmentTbl(self.sym)._repr_markdown_()
        return f'::::{{py:{what}}} {self.nm}{signature}\n{options}\n{source}\n\n{self.docs}\n\n{table}\n::::'

nbdev.showdoc.BasicMarkdownRenderer = ApiEntry


class Procs(FilterDefaults):
    "nbdev's processors without those that prepare a page for Quarto"
    def base_procs(self):
        skip = 'FrontmatterProc insert_warning rm_export add_links add_fold mv_exports'.split()
        return [o for o in super().base_procs() if o.__name__ not in skip]


class Links(NbdevLookup):
    "Links from names in backticks to their API entry, or to that of their class"
    def __init__(self): pass
    def link_line(self, line):
        if line.startswith(('#','<',':::')): return line
        return re.sub(r'(?<!\[)`([^`\s]+?)(\(\))?`(?!\])', self._link_sym, line)
    def _link_sym(self, m):
        name = re.sub(rf'^{lib}\.(\w+\.(?=\w))?', '', m[1])
        for o in name, name.rpartition('.')[0]:
            if o in ApiEntry.shown: return f'{{py:obj}}`{m[1]}{m[2] or ""} <{names[o][0]}.{o}>`'
        return m[0]


def link_pages(md):
    "Links to notebooks, or to the pages that nbdev makes of them, lead to their pages here"
    def f(m): return f'({nbpath2html(m[1]).with_suffix(".ipynb").as_posix()}{m[2] or ""})'
    return re.sub(r'(?<=\])\((?!\w+:)([^)#\s]+\.(?:ipynb|html))(#[^)\s]*)?\)', f, md)


def definitions(source):
    "The names that a cell defines, with the methods of its classes"
    funcs = ast.FunctionDef,ast.AsyncFunctionDef
    for o in ast.parse(source).body:
        if isinstance(o, funcs): nm = patch_name(o); yield from nm if isinstance(nm, list) else [nm]
        elif isinstance(o, ast.ClassDef): yield from [o.name, *(f'{o.name}.{f.name}' for f in o.body if isinstance(f, funcs))]


def strip_directives(source): return re.sub(r'(?m)^#\|.*\n?', '', source).strip()


def source_cell(source):
    "An exported cell: the source of API entries, folded"
    source = strip_directives(source)
    if all(isinstance(o, (ast.Import,ast.ImportFrom)) for o in ast.parse(source).body): return []
    defined = list(definitions(source))
    ids = ''.join(f'<a id="source-{o}"></a>' for o in defined)
    top = ', '.join(o for o in defined if o.rpartition('.')[0] not in defined)
    summary = f'<summary>Source{" of " if top else ""}{top}</summary>'
    return [mk_cell(f'<details class="source">{summary}{ids}\n\n````python\n{source}\n````\n\n</details>', 'markdown')]


def drawn_by(source):
    "What the package's functions that a cell calls say they plot"
    for name,(mod,_) in names.items():
        cls,_,func = name.rpartition('.')
        if re.search(rf'\b{func}\(', source) and (not cls or camel2snake(cls) in source):
            doc = attrgetter(name)(import_module(mod)).__doc__ or ''
            if doc.startswith('Plot'): return doc


def alt_text(cell, text):
    """What a figure shows: its `fig-alt` or `fig-cap`, or the section and what the code calls the axes, or what a function
    of the package says it plots, or the words before it. `text` is the page so far"""
    given = cell.directives_.get('fig-alt') or cell.directives_.get('fig-cap')
    if given: return given.strip('"\'')
    section,prose = 'Figure',''
    for o in re.sub(r'(?ms)^(```|~~~).*?^\1', '', text).split('\n\n'):
        if o.startswith('#'): section,prose = o.strip('# ').partition('\n')[0],''
        elif re.match(r'[\w*`$]', o): prose = o
    drawn = dict(re.findall(r"""(title|xlabel|ylabel)[=(]["']([^"'{]+)["']""", cell.source))
    axes = ' over '.join(drawn[o] for o in ('ylabel','xlabel') if o in drawn)
    words = ': '.join(o for o in (section, drawn.get('title', ''), axes or drawn_by(cell.source) or prose) if o)
    return textwrap.shorten(re.sub(r'\[([^\]]*)\]\([^)]*\)|[`*$\\]', r'\1', words), 250, placeholder=' …')


def example_cell(cell, text):
    "A code cell and its committed outputs, as Quarto's directives want it"
    d = cell.directives_
    if d.get('include')=='false': return []
    cell.source = strip_directives(cell.source)
    tags = dict(echo='remove-input', output='remove-output')
    cell.metadata = dict(tags=[tag for k,tag in tags.items() if d.get(k)=='false'] + ['hide-input']*('code-fold' in d),
                         mystnb=dict(image=dict(alt=alt_text(cell, text))))
    if 'fig-cap' in d: cell.metadata['mystnb']['figure'] = dict(caption=d['fig-cap'].strip('"\''))
    return [cell] if cell.source else []


def joined(cells, new):
    "`cells` and `new` ones: where both are folded and the former shows nothing, one cell for the two"
    folded = lambda o: 'hide-input' in o.metadata.get('tags', [])
    if new and cells and folded(new[0]) and folded(cells[-1]) and not cells[-1].get('outputs'):
        new[0].source = f'{cells[-1].source}\n\n{new[0].source}'
        cells = cells[:-1]
    return cells+new


def title(fm): return f"# {fm['title']}\n\n> {fm.get('description', '')}".rstrip('> \n') if 'title' in fm else ''


def page_cells(nb, page):
    "The cells of a page: prose, the names it documents, API entries each followed by their source, examples"
    ApiEntry.page = page
    NBProcessor(nb=nb, procs=Procs().procs(), rm_directives='quarto').process()
    cells,text,source = [],'',[]
    for cell in nb.cells:
        if cell.cell_type=='code' and re.search(r'(?m)^show_doc\(', cell.source):
            entries = [mk_cell(''.join(o.data['text/markdown']), 'markdown') for o in cell.outputs if 'text/markdown' in o.get('data', {})]
            if not entries: raise RuntimeError(f'{page}: no API entry came of {cell.source}')
            cells += entries
            continue
        cells,source = cells+source,[]
        if cell.cell_type=='markdown': text += f'\n\n{cell.source}'; cells.append(cell)
        elif cell.cell_type=='raw': cells.append(mk_cell(title(cell_frontmatter(cell.source)), 'markdown'))
        elif 'default_exp' in cell.directives_: pass
        elif cell.directives_.keys() & {'export','exporti','exports'}: source = source_cell(cell.source)
        else: cells = joined(cells, example_cell(cell, text))
    return with_entries(cells+source, page)


def with_entries(cells, page):
    "`cells` of a page with what it documents under its title: classes and optimizers, which one looks for, before functions"
    shown = [o for o in ApiEntry.shown.values() if names[o.nm][1]==page and '.' not in o.nm]
    if not shown: return cells
    shown.sort(key=lambda o: not o.nm[0].isupper())
    rows = '\n'.join(f'| `{o.nm}` | {o.docs.strip().partition(chr(10))[0]} |' for o in shown)
    return [*cells[:1], mk_cell(f'| on this page | |\n|---|---|\n{rows}', 'markdown'), *cells[1:]]


def kind(nb_path, nb):
    "Where a page stands in the sidebar; a module that no user types says `#| inside` where it names itself"
    if nb_path.parts[0]=='tutorials': return 'Tutorials'
    exp = [c.directives for c in nb.cells if c.cell_type=='code' and 'default_exp' in c.directives]
    return 'How-to' if not exp else 'Inside' if 'inside' in exp[0] else 'API'


def contents(found, landing=''):
    """The pages by kind, for the sidebar and as a list: as the text `landing` leads to them, and those that it does not last;
    those of modules as they are numbered"""
    res = ''
    for k in 'Tutorials','How-to','API','Inside':
        if not found.get(k): continue
        if k in ('Tutorials','How-to'): found[k].sort(key=lambda o: landing.rfind(f'{o[0]}.ipynb') % (len(landing)+1))
        toc = '\n'.join(page for page,_ in found[k])
        res += f'\n\n:::{{toctree}}\n:caption: {k}\n:hidden:\n\n{toc}\n:::\n\n## {k}\n\n'
        res += '\n'.join(f"- [{fm.get('title', page)}]({page}.ipynb): {fm.get('description', '')}".rstrip(': ') for page,fm in found[k])
    return mk_cell(res, 'markdown')


def write_source(src):
    "Write what Sphinx reads: the notebooks under their pages' names, and the files beside them"
    nbs = get_config().nbs_path
    for f in nbglob(file_glob='*.*', as_path=True):
        if f.suffix not in ('.ipynb','.py','.yml'):
            (src/f.relative_to(nbs)).parent.mkdir(parents=True, exist_ok=True)
            copy2(f, src/f.relative_to(nbs))
    pages,found = {},{}
    for f in sorted(nbglob(as_path=True)):
        rel,nb = f.relative_to(nbs),read_nb(f)
        page = nbpath2html(rel).with_suffix('').as_posix()
        if page!='index': found.setdefault(kind(rel, nb), []).append((page, nb_frontmatter(nb)))
        pages[page] = page_cells(nb, f'{page}.html')
    welcome = mk_cell(title(dict(title=lib, description=metadata(lib)['Summary'])), 'markdown')
    landing = '\n'.join(o.source for o in pages.get('index', []))
    pages['index'] = pages.get('index', [welcome]) + [contents(found, landing)]
    for page,cells in pages.items():
        for cell in cells:
            if cell.cell_type=='markdown': cell.source = link_pages(Links().linkify(cell.source))
        nb = new_nb(cells, meta=dict(language_info=dict(name='python', pygments_lexer='ipython3')))
        (src/page).parent.mkdir(parents=True, exist_ok=True)
        write_nb(nb, src/f'{page}.ipynb')


def main(out):
    with tempfile.TemporaryDirectory() as tmp:
        src,html = Path(tmp)/'src',Path(tmp)/'html'
        src.mkdir()
        write_source(src)
        failed = build_main(['-q', '-n', '-W', '--keep-going', '-c', str(docs), '-d', f'{tmp}/doctrees', str(src), str(html)])
        if (out/'searchindex.js').exists(): rmtree(out)  # a former site: leave no stale page
        if html.exists(): copytree(html, out, dirs_exist_ok=True)
        return failed


if __name__=='__main__': sys.exit(main(cwd/sys.argv[1] if len(sys.argv)>1 else docs.parent/'_docs'))
