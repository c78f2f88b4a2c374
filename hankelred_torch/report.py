"""What a cut did, for people, loggers and files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .plan import LayerPlan, layer_scalars, layer_table


@dataclass(frozen=True, eq=False)
class CompressionReport:
    """What `compress_` did; prints as the table of its plan with a line of totals.

    Attributes
    ----------
    layers : dict of str to LayerPlan
        What was done in every layer, by module name, with hsv, error bound and reduction.
    parameters_before, parameters_after : int
        Parameters of the whole model.
    seconds : float
        Wall-clock time of analysis and surgery together.
    step : int or None
        Optimizer step of the cut where an `InTrainingCompressor` made it.
    ema_restarted : tuple of str
        Layers whose averaged copy could not follow the cut and starts anew from the live layer.
    """

    layers: dict[str, LayerPlan]
    parameters_before: int
    parameters_after: int
    seconds: float
    step: int | None = None
    ema_restarted: tuple[str, ...] = ()

    @property
    def sizes(self) -> dict[str, int]:
        """States every layer stores now, by module name."""
        return {name: layer.states for name, layer in self.layers.items()}

    @property
    def is_cut(self) -> bool:
        """Whether any layer lost states."""
        return any(layer.is_cut for layer in self.layers.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, ready for JSON.

        Returns
        -------
        dict of str to object
            The totals and one entry per layer.
        """
        names = ("step", "parameters_before", "parameters_after", "seconds")
        totals = {name: getattr(self, name) for name in names}
        totals["ema_restarted"] = list(self.ema_restarted)
        return totals | {"layers": [layer.to_dict() for layer in self.layers.values()]}

    def scalars(self, prefix: str = "hankelred") -> dict[str, float]:
        """Return the figures of the report for a logger.

        Parameters
        ----------
        prefix : str, default "hankelred"
            First part of every name.

        Returns
        -------
        dict of str to float
            Those of `CompressionPlan.scalars`, ``prefix/parameters`` and ``prefix/seconds``.
        """
        totals = {f"{prefix}/parameters": float(self.parameters_after), f"{prefix}/seconds": self.seconds}
        return layer_scalars(self.layers, prefix) | totals

    def __str__(self) -> str:
        """Return the table of the layers and a line of totals."""
        total = f"parameters {self.parameters_before} -> {self.parameters_after}, {self.seconds:.2f} s"
        if self.step is not None:
            total = f"step {self.step}, {total}"
        if self.ema_restarted:
            total += f"\naverages that start anew: {', '.join(self.ema_restarted)}"
        return f"{layer_table(self.layers)}\n{total}"
