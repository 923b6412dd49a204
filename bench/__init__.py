"""The bench: Netbore beside the programs people would pick instead, in one run, in turn, on one machine.

`python -m bench --help` says how to call it, `bench/README.md` what the figures mean.
"""
