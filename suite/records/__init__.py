"""Tables on disk: columns, CSV format, what a finished run must have left, folders gathered into one. Never imports torch."""
