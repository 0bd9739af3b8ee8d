"""Benchmarks: attnkern beside what one would use otherwise, each result checked before it is timed.

problems.py   what is measured: named suites of rows, as plain data
peers.py      who computes attention: attnkern, torch; others.py: what else is installed
modules.py, packed.py, aoa.py, learned.py, roofs.py   the same for rows of other kinds
bert.py       a whole model, a command of its own
measure.py    one row: inputs, verification (verify.py), times (timing.py), memory
results.py    a measurement as a line of JSON, read and written
run.py        suites from end to end; compare.py: two files; report.py: a page of charts

The folder stands at the top level and is installed as `attnkern.bench`.
"""
