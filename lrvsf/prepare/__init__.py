"""The steps of prepare_lrvsf.py: any source -> product shards (training) and test sets (evaluation).

One module a step. Each exposes one function named like the step; its annotations are its command line, its result is a
report (a dict of plain numbers and strings, see report.py). A step can be killed and started again.
"""
