"""One process, one scheme file: which schemes there are, the processes that know them, and what their code may not change."""
