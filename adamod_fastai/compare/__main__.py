"`python -m adamod_fastai.compare` is the command `adamod-compare`"
from .command import main

if __name__ == '__main__': main()
