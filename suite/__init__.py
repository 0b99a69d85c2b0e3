"""ScreamBench: what keeps very deep transformers trainable. See CONTRIBUTING.md for the map of the house."""

__version__ = "0.2.0"
