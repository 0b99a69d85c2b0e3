"""A plan made true: which runs, by which workers, on which machines, and how a finished run reaches the tables."""
