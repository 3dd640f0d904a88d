"""What wraps a loss: a memory of past batches, several views, losses or widths. Calls to calls."""

from .matryoshka import MatryoshkaLoss
from .memory import CrossBatchMemory
from .several import MultipleLosses
from .views import SelfSupervisedLoss

__all__ = ["CrossBatchMemory", "MatryoshkaLoss", "MultipleLosses", "SelfSupervisedLoss"]
