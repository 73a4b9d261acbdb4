"The mistakes of tools/mutants.py can be put into the package as it is now"
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

_spec = spec_from_file_location('mutants', Path(__file__).resolve().parent.parent/'tools'/'mutants.py')
mutants = module_from_spec(_spec)
_spec.loader.exec_module(mutants)

def test_the_text_of_each_mistake_stands_once_in_the_package():
    assert not {o.name: why for o in mutants.MISTAKES if (why := mutants.why_not(o))}

def test_each_mistake_is_python():
    "One that is not would be noticed by any test"
    texts = [o.read_text(encoding='utf-8') for o in mutants.sources()]
    for o in mutants.MISTAKES:
        for text in texts:
            if o.old in text: compile(text.replace(o.old, o.new), o.name, 'exec')

def test_a_mistake_has_a_name_of_its_own():
    names = [o.name for o in mutants.MISTAKES]
    assert [o for o in set(names) if names.count(o) > 1] == []
