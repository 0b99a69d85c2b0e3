"""From a loss curve to an outcome, for our own runs and for logs from elsewhere. Never imports torch."""
