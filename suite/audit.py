"""The public door to what can be asked of any torch model: `from suite.audit import audit, Monitor`."""

from suite.diagnosis.any_model import AuditError, audit
from suite.diagnosis.callbacks import hugging_face_monitor, lightning_monitor
from suite.diagnosis.monitor import DyingWarning, Monitor

__all__ = ["AuditError", "DyingWarning", "Monitor", "audit", "hugging_face_monitor", "lightning_monitor"]
