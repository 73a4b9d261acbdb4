"""How much stands on a line: syntax nodes per line of code, of this package and of fastai's own: `python tools/density.py [FILE ...]`

A line of code is one that is not blank, not a comment and not part of a docstring. Names and attributes count once each: whether one is
read or written is not a node here.
"""
import ast, io, sys, tokenize
from importlib.util import find_spec
from pathlib import Path

no_code = tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER

def docstrings(tree):
    "The numbers of the lines on which docstrings stand"
    holders = [o for o in ast.walk(tree) if isinstance(o, (ast.Module,ast.ClassDef,ast.FunctionDef,ast.AsyncFunctionDef))]
    docs = [o.body[0] for o in holders if ast.get_docstring(o, clean=False) is not None]
    alone = [o for o in docs if o.lineno not in {h.lineno for h in holders if hasattr(h, 'lineno')}]
    return {i for o in alone for i in range(o.lineno, o.end_lineno+1)}

def measure(path):
    "The lines of code in the file `path`, and the syntax nodes on a line"
    text = Path(path).read_text(encoding='utf-8')
    tree = ast.parse(text)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {i for o in tokens if o.type not in no_code for i in range(o.start[0], o.end[0]+1)}
    n_lines = len(code - docstrings(tree))
    n_nodes = sum(not isinstance(o, (ast.expr_context,ast.Module)) for o in ast.walk(tree))
    return n_lines, n_nodes/max(1, n_lines)

def package(): return sorted(o for o in (Path(__file__).parent.parent/'adamod_fastai').rglob('*.py') if not o.stem.startswith('_'))

if __name__ == '__main__':
    field = [find_spec(o).origin for o in ('fastai.optimizer','fastai.callback.schedule','fastai.learner','torch.optim.adam')]
    for o in sys.argv[1:] or [*field, *package()]:
        n_lines,density = measure(o)
        print(f'{density:5.1f} nodes a line, {n_lines:4} lines  {o}')
