"""Execution: the one life cycle of a run, what it is given, what it may write to, and where it computes.

`inputs` turns arguments into identified subjects, `lifecycle` runs a job, `out` is what the method writes to, `code` says
which methods are unpublished; `device`, `progress`, `checkpoint`, `transfer` and `provenance` do what their names say.
"""
