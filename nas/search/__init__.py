"""The arrangement: costs from the table, quality from the supernet.

Optuna proposes.
"""
