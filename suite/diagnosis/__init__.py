"""What happens inside a network: the paper's metrics, the audit of a run of ours, and that of any torch model."""
