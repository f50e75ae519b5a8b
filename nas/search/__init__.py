"""Choose the arrangement: costs from the table, quality from the supernet, proposals from Optuna."""
