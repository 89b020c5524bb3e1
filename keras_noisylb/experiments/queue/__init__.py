"""The runs of a table, each in a process of its own: planned, estimated, executed."""
