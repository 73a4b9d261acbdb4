"Python runs this as it starts, with `tests` on its path: with `OTHER_MACHINE` set, fastai trains as on another machine"
import importlib.util, os, sys

class AfterLearner:
    "Wait until fastai is imported: not every process needs it"
    def find_spec(self, name, path=None, target=None):
        if name != 'fastai.learner': return
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def exec_module(module):
            load(module)
            from other_machine import become
            become(module.Learner)
        spec.loader.exec_module = exec_module
        return spec

if os.environ.get('OTHER_MACHINE'): sys.meta_path.insert(0, AfterLearner())
