"""Containment of untrusted Python programs: processes with kernel restrictions, and limits over all of them.

`rlad.verifiers.sandbox` runs programs with it; `probe` states what holds on this machine. The package imports nothing
heavy, because every sandbox starts a fresh interpreter. `inside/` runs in that interpreter.
"""
