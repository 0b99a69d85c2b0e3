"""Logs from elsewhere: what the columns mean, and what became of the run."""
