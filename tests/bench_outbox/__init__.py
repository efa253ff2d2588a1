"""The outbox benchmark: the same messages and the same misfortunes for switchback and for mosquitto's persistence.

`cases` says what is done (one function per case), `rows` what a figure means and what it should be, `stage` does it in
one lab, `places` are the disks, `carriers` knows how to start what keeps and carries the messages, `turns` runs one after
the other, `table` prints. `tests/bench outbox` is the command. Cases run one at a time: a disk and two processors are
measured, and nothing else may use them.
"""
