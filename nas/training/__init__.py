"""Training: one machine or many, killed and resumed without a trace."""
