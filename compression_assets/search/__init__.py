"""`compression search`: which order and which recipes are best below a size, found by successive halving.

A trial is an ordering with variants in a study that is written beside the results (`widened`), and is built by an
ordinary run of that study (`run`). What was tried and measured is in a file of Optuna's (`ledger`).
"""
