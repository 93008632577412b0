"""Execution: the one life cycle of a run, what it is given, what it may write to, and where it computes.

`request` takes a run from arguments to the store, whoever executes it; `inputs` turns arguments into identified subjects,
`lifecycle` runs a job, `out` is what the method writes to, `turn` keeps runs of one process apart.
Elsewhere: `background` (a thread), `cluster` (the client's side of dask), `worker` (the other side), `shipping` (what travels),
each seen through a `handle`; `sweep` and `points` for many runs, `blockwise` for the parts of one; `preload` and `heap` make a
worker process what it should be. `code` says which methods are
unpublished; `device`, `progress`, `checkpoint`, `transfer`, `sources` and `provenance` do what their names say.
"""
