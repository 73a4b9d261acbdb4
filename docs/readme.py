"""Make README.md and its figures from `nbs/index.ipynb`, as `nbdev-readme` does where Quarto is installed

    python docs/readme.py            writes README.md and docs/images/
    python docs/readme.py --check    writes nothing, fails if they are out of date
"""
import json, re, sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_, populate_language, rm_export, strip_ansi
from traitlets.config import Config

root = Path(__file__).resolve().parent.parent
images = Path('docs/images')

def _repository_output(out):
    "What a repository's front page can show of an output: of HTML only a table, no style sheet and no finished progress bar"
    data = out.get('data', {})
    if 'text/html' in data:
        table = re.search(r'<table.*?</table>', ''.join(data['text/html']), re.S)
        if not table: return None
        tight = re.sub(r'>\s+<', '><', table[0]).replace(' border="1"', '')  # a blank line would end the table
        out['data'] = {'text/html': tight.replace('<tr', '\n<tr').replace('</tbody>', '\n</tbody>')}
    elif 'image/png' in data: out['data'] = {'image/png': data['image/png']}
    return out

def readme(nb=root/'nbs/index.ipynb'):
    "The Markdown of the notebook `nb`, and its figures as a dict from path to bytes"
    proc = NBProcessor(nb, procs=[populate_language, strip_ansi, rm_export, clean_magics, hide_])
    proc.process()
    for c in proc.nb.cells:
        if c.cell_type != 'code': continue
        c.outputs = [o for o in map(_repository_output, c.outputs) if o]
        if c.directives_.get('echo') == 'false': c.metadata['tags'] = ['no-code']
    cfg = Config(TagRemovePreprocessor=dict(enabled=True, remove_input_tags=['no-code']))
    alts = {i: c.directives_.get('fig-alt', 'figure') for i,c in enumerate(proc.nb.cells) if c.cell_type == 'code'}
    nb = nbformat.from_dict(json.loads(json.dumps(proc.nb)))
    nb.metadata['language_info'] = {'name': 'python'}
    md,res = MarkdownExporter(config=cfg).from_notebook_node(nb, resources={'output_files_dir': str(images), 'unique_key': 'readme'})
    md = re.sub(r'!\[png\]\((.*?readme_(\d+)_\d+\.png)\)', lambda m: f'![{alts[int(m[2])]}]({m[1]})', md)
    md = re.sub(r'(?<=\]\()([\w/]+\.ipynb)', r'nbs/\1', md)  # the links lead from nbs/ there, from its parent here
    return re.sub(r'\n\s*\n\s*\n', '\n\n', md).strip()+'\n', {Path(k): v for k,v in res['outputs'].items()}

def stale():
    "The files that are out of date"
    md,pics = readme()
    want = {Path('README.md'): md.encode(), **pics}
    have = {o.relative_to(root) for o in (root/images).glob('readme*')}
    return sorted(str(k) for k in have|set(want) if not (root/k).exists() or (root/k).read_bytes() != want.get(k))

if __name__ == '__main__':
    if '--check' in sys.argv:
        if files := stale(): sys.exit(f'Out of date: {", ".join(files)}. Run python docs/readme.py')
    else:
        md,pics = readme()
        (root/images).mkdir(exist_ok=True)
        for o in (root/images).glob('readme*'): o.unlink()
        (root/'README.md').write_text(md)
        for k,v in pics.items(): (root/k).write_bytes(v)
