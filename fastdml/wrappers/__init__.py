"""What wraps a loss: a memory of past batches, several views, several losses. Calls to calls."""

from .memory import CrossBatchMemory
from .several import MultipleLosses
from .views import SelfSupervisedLoss

__all__ = ["CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss"]
