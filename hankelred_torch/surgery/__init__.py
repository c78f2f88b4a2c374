"""Changing a model that trains: a cut with all that hangs on it, in one exchange, and the way back."""

from ..exchange import Exchange as Exchange
from .averages import Models as Models
from .averages import as_copies as as_copies
from .averages import as_models as as_models
from .cut import compress_ as compress_
from .cut import write_system as write_system
from .optimizers import Optimizers as Optimizers
from .optimizers import as_optimizers as as_optimizers
from .optimizers import check_optimizers as check_optimizers
from .optimizers import check_trained as check_trained
from .ranks import refresh_ddp_ as refresh_ddp_
from .roles import register_optimizer_state as register_optimizer_state
from .snapshot import Snapshot as Snapshot
