"Each module has one subject, uses only those before it, and can be held in one's head"
import ast, io, tokenize
from pathlib import Path

import pytest

package = Path(__file__).resolve().parent.parent/'adamod_fastai'
ROOMS = ['core','tape','fused','memory','optimizer','callback','tasks','runs','store','compare','all']

def uses(name):
    "The modules of the package that a module imports, anywhere in it"
    found = [o for o in ast.walk(ast.parse((package/f'{name}.py').read_text())) if isinstance(o, (ast.Import,ast.ImportFrom))]
    assert not any('adamod_fastai' in a.name for o in found if isinstance(o, ast.Import) for a in o.names)
    return {o.module for o in found if isinstance(o, ast.ImportFrom) and o.level==1} | {
        o.module.partition('.')[2] for o in found if isinstance(o, ast.ImportFrom) and not o.level and o.module.startswith('adamod_fastai')}

def test_these_are_all_the_modules(): assert {o.stem for o in package.glob('*.py')} == {*ROOMS,'__init__','_modidx'}

@pytest.mark.parametrize('name', ROOMS)
def test_uses_only_what_stands_before_it(name): assert uses(name) <= set(ROOMS[:ROOMS.index(name)])

def code_lines(src, tree):
    "The numbers of the lines that hold code: no blank ones, comments or docstrings"
    docs = {o.body[0].value for o in ast.walk(tree) if isinstance(o, (ast.Module,ast.ClassDef,ast.FunctionDef)) and ast.get_docstring(o)}
    layout = tokenize.COMMENT,tokenize.NL,tokenize.NEWLINE,tokenize.INDENT,tokenize.DEDENT,tokenize.ENDMARKER
    found = {n for t in tokenize.generate_tokens(io.StringIO(src).readline) if t.type not in layout for n in range(t.start[0], t.end[0]+1)}
    return found - {n for o in docs for n in range(o.lineno, o.end_lineno+1)}

def density(src):
    "Syntax nodes for each line of code"
    tree = ast.parse(src)
    n = sum(not isinstance(o, (ast.expr_context,ast.Module)) for o in ast.walk(tree))
    return n/len(code_lines(src, tree))

@pytest.mark.parametrize('name', ROOMS)
def test_is_not_dense(name): assert density((package/f'{name}.py').read_text()) <= 10

def test_the_step_knows_no_rule(): assert uses('tape') == {'core'} and uses('fused') == {'core','tape'}

def test_all_is_what_a_user_types():
    import adamod_fastai.all as all_
    names = {o for o in vars(all_) if not o.startswith('_')}
    assert {'AdaMod','DiffMod','DiffGrad','DeepMemory','FusedOptimizer','MemoryLength','ClippedFraction','RateHistogram','SwitchToSGD',
            'compare','compare_table','plot_metric','plot_losses','average_lr','clip_rate','rate_step'} <= names
    assert not {o for o in names if o=='main' or o.endswith(('_learner','_dls'))}
