"""What wraps a loss: a memory of past batches, several views, several losses, weights. Calls to calls."""

from .labelled import Labelled
from .memory import CrossBatchMemory
from .several import MultipleLosses
from .views import SelfSupervisedLoss

__all__ = ["CrossBatchMemory", "Labelled", "MultipleLosses", "SelfSupervisedLoss"]
