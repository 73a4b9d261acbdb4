"""Executes each page whose path it reads from standard input, as `nbdev-test` does, and writes its exit status

Each has a process of its own, forked from this one, which has imported what nearly every page imports first, and done nothing else.
Not the package: a page imports that itself, and its workers have a fork server of their own, unlike those of `new_process`.
"""
import os, sys
import fastai.vision.all
from nbdev.test import nbdev_test

for page in sys.stdin:
    if not os.fork():
        os.dup2(2, 1)   # standard output is for the status
        try: nbdev_test(page.strip())
        except SystemExit: os._exit(1)
        os._exit(0)     # to tidy up what was imported takes seconds
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
