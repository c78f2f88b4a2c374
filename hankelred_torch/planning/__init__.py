"""What to cut and by how much: decides only; nothing in a model changes here."""

from .cuts import LayerCut as LayerCut
from .cuts import Plan as Plan
from .plan import Batches as Batches
from .plan import check_stable as check_stable
from .plan import decide as decide
from .plan import hankel_singular_values as hankel_singular_values
from .plan import looked_at as looked_at
from .plan import plan as plan
from .plan import renewed as renewed
from .plan import target_layers as target_layers
