"""The switching benchmark: the same publisher and the same faults against switchback and against the plain alternative.

`cases` says what is done to the networks (one function per case), `rows` what a figure means and what it should be,
`stage` does it in one lab and measures at the cloud, `carriers` knows how to start what carries the messages, `lanes`
lets several labs work side by side, `table` prints. `tests/bench` is the command.
"""
