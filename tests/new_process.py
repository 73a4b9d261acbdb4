"New processes that need not import fastai: forked from one that has imported the package and done nothing else"
import os, sys, tempfile
from pathlib import Path
from subprocess import CompletedProcess

from adamod_fastai.compare.processes import context

METHOD = context().get_start_method()

def _execute(code, args, env, out, err):
    for o,fd in (out,1),(err,2): os.dup2(os.open(o, os.O_WRONLY), fd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[1:] = args
    exec(compile(code, '<code>', 'exec'), dict(__name__='__main__'))

def python(code, *args, **env):
    "What `python -c code args` ends with, with `env` in the environment: for what is read later than torch is imported"
    with tempfile.TemporaryDirectory() as folder:
        out,err = files = [Path(folder)/o for o in ('out','err')]
        for o in files: o.touch()
        p = context().Process(target=_execute, args=(code,list(map(str, args)),{**os.environ, **env},out,err))
        p.start()
        p.join()
        return CompletedProcess(code, p.exitcode, *(o.read_text(encoding='utf-8') for o in files))
