"""The branch study: one text trunk, branches at chosen points, the same policies for each, from a file to the figure.

`study_file` reads what is asked, `points` are the runs that it asks for, `segments` the graph of pieces that they share,
`cost` what these take, `folder` what of them is done, `executor` and `slurm` do the rest, `results` and `report` tell.
docs/study.md is the page for users.
"""
