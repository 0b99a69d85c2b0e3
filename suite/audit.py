"""The public door to the audit of any torch model: `from suite.audit import audit`."""

from suite.diagnosis.any_model import AuditError, audit

__all__ = ["AuditError", "audit"]
