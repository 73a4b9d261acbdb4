#!/usr/bin/env python
"""Sentence pairs, English and German, out of the gettext catalogues that Debian's packages carry: `python benchmarks/translation_data.py`

Needs Debian or Ubuntu with `apt-get download` (217 MB, nothing is installed) and `pip install sentencepiece`. Writes into
benchmarks/pairs, which is not committed: pairs.tsv with the pairs, pieces.model with the tokens that a model sees. Which
packages, their versions and licences is in benchmarks/translation.csv: other versions give nearly the same pairs, and are named.
"""
import re, subprocess, sys, tempfile
from gettext import GNUTranslations
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd

here = Path(__file__).parent
out,table = here/'pairs',here/'translation.csv'
n_valid,n_pieces = 1000,1000

def unpack(deb, folder):
    "The German catalogues of the package `deb` and its statement of licences"
    folder.mkdir()
    tar = subprocess.run(['dpkg-deb','--fsys-tarfile',deb], stdout=subprocess.PIPE, check=True).stdout
    wanted = ['*/de/LC_MESSAGES/*.mo','./usr/share/doc/*/copyright']
    subprocess.run(['tar','-x','-C',folder,'--wildcards',*wanted], input=tar, stderr=subprocess.DEVNULL)  # some have only one of both
    return sorted(folder.rglob('*.mo')),sorted(folder.rglob('copyright'))

def licences(paths):
    "The short names in the fields `License` of a Debian package; without such fields, the licences that are named"
    text = '\n'.join(o.read_text(errors='replace') for o in paths if o.is_file())
    found = re.findall(r'^License: *(\S[^\n,]*)', text, re.M)
    if not found: found = re.findall(r'GNU (?:Lesser |Library )?General Public License|MIT|MPL|BSD', text)
    short = {re.sub(r'GNU (L?)(?:esser |ibrary )?General Public License', r'\1GPL', o).strip() for o in found}
    return ', '.join(sorted(short)) or 'stated by another package of the same source'

odd = re.compile(r'[<>{}%\\|@$#=*^`\[\]/]|www\.|--|\.\w{2,4}\b')
def sentence(s):
    "A message without the marks of its shortcut and without line breaks; nothing if it is not 4 to 12 plain words"
    s = ' '.join(re.sub(r'[&_~](?=\w)', '', s).split())
    n,letters = len(s.split()),sum(c.isalpha() or c==' ' for c in s)
    return s if 4 <= n <= 12 and letters >= 0.9*len(s) and not odd.search(s) else ''

def messages(path):
    "The pairs in a catalogue, without those with a plural"
    with open(path, 'rb') as f: catalogue = GNUTranslations(f)._catalog
    for en,de in catalogue.items():
        if isinstance(en, str): yield sentence(en.rpartition('\x04')[2]),sentence(de)  # before \x04 is the context

def words(s): return ' '.join(re.findall(r'[^\W\d_]+', s.lower()))

def near(a, b, least=0.5):
    "Which of the sentences `a` share at least half of their different words with one of `b`?"
    from sklearn.feature_extraction.text import CountVectorizer
    cv = CountVectorizer(binary=True, token_pattern=r'\S+')
    both = cv.fit_transform([words(o) for o in (*a,*b)]).astype(np.int32)
    x,y = both[:len(a)],both[len(a):]
    common = (x @ y.T).tocoo()
    n,m = np.asarray(x.sum(1)).ravel(),np.asarray(y.sum(1)).ravel()
    is_near = common.data >= least*(n[common.row]+m[common.col]-common.data)
    return np.isin(np.arange(len(a)), common.row[is_near])

def split(df):
    "Mark 1000 random pairs as those to validate on, and leave out what is close to one of them in either language"
    df = df.sample(frac=1, random_state=42, ignore_index=True)
    valid,train = df[:n_valid],df[n_valid:]
    train = train[~(near(train.en, valid.en)|near(train.de, valid.de))]
    return pd.concat([valid.assign(split='valid'),train.assign(split='train')], ignore_index=True)

def main():
    old,rows,pairs = pd.read_csv(table, dtype=str, keep_default_na=False).set_index('package'),[],[]
    seen = set()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        tmp.chmod(0o755)
        subprocess.run(['apt-get','download','-q',*old.index], cwd=tmp, check=True, stdout=subprocess.DEVNULL)
        for package in old.index:
            deb, = tmp.glob(f'{package}_*.deb')
            version = subprocess.run(['dpkg-deb','-f',deb,'Version'], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
            catalogues,copyrights = unpack(deb, tmp/package)
            before = len(pairs)
            for en,de in (o for path in catalogues for o in messages(path)):
                key = words(en)
                if en and de and key not in seen and key != words(de):
                    seen.add(key)
                    pairs.append((package,en,de))
            rows.append(dict(package=package, version=version, pairs=len(pairs)-before, licences=licences(copyrights)))
            print(f'{package} {version}: {len(pairs)-before} pairs', flush=True)
    df = split(pd.DataFrame(pairs, columns=['package','en','de']))
    out.mkdir(exist_ok=True)
    df[['split','package','en','de']].to_csv(out/'pairs.tsv', sep='\t', index=False)
    import sentencepiece
    text = [o for k in ('en','de') for o in df[df.split=='train'][k]]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(text), model_prefix=str(out/'pieces'), model_type='bpe',
        vocab_size=n_pieces, pad_id=0, bos_id=1, eos_id=2, unk_id=3, num_threads=1, minloglevel=2)
    digest = sha256((out/'pairs.tsv').read_bytes()).hexdigest()[:16]
    print(f'{len(pairs)} pairs, {(df.split=="train").sum()} to train and {n_valid} to validate; sha256 of pairs.tsv {digest}')
    new = pd.DataFrame(rows)
    for o in new.itertuples():
        if o.version != old.version[o.package]: print(f'{o.package}: version {o.version}, not {old.version[o.package]}')
    if '--write' in sys.argv: new.to_csv(table, index=False)

if __name__=='__main__': main()
