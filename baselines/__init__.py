"""One residual scheme per file; `suite.registry` discovers every module in this folder."""
