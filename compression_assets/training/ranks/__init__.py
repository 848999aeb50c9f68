"""One training on several devices: a process (rank) for each, its model sharded over them by FSDP2.

`launch` writes a job and starts the ranks, `rank` is what each of them runs, `sharding` spreads the model over them,
`checkpoints` saves their shards. The loss, the order of rows and the learning rates are those of the loop.
"""
