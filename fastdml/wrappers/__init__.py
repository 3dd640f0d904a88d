"""What wraps a loss: a memory of past batches; several views, losses or widths; weights. Calls to calls."""

from .labelled import Labelled
from .matryoshka import MatryoshkaLoss
from .memory import CrossBatchMemory
from .several import MultipleLosses
from .views import SelfSupervisedLoss

__all__ = ["CrossBatchMemory", "Labelled", "MatryoshkaLoss", "MultipleLosses", "SelfSupervisedLoss"]
