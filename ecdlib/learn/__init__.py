"""Learning: splits, runs, results, predictions."""
