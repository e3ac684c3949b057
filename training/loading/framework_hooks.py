"""How a loader is given to each framework; none is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from training.hooks.jax import JaxBatches
    from training.hooks.keras import KerasBatches
    from training.hooks.torch import TorchBatches, TorchMap
    from training.hooks.xgboost import XGBoostPages
    from training.loading.loader import Loader


class FrameworkHooks:
    """The methods of a loader that return what frameworks train from."""

    @property
    def _loader(self) -> Loader:
        return cast("Loader", self)

    def keras(
        self, class_weight: Mapping[int, float] | None = None, inputs: str = "dict"
    ) -> KerasBatches:
        """Return what ``model.fit``, ``evaluate`` and ``predict`` accept directly.

        See :class:`training.hooks.keras.KerasBatches`.
        """
        from training.hooks.keras import KerasBatches

        return KerasBatches(self._loader, class_weight, inputs)

    def xgboost(self, page_bytes: int | str | None = None) -> XGBoostPages:
        """Return an ``xgboost.DataIter`` over the rows in table order, for external memory."""
        from training.hooks.xgboost import XGBoostPages

        return XGBoostPages(self._loader, page_bytes)

    def tf_data(self) -> Any:
        """Return a ``tf.data.Dataset`` of ``(inputs, label)`` with known cardinality."""
        from training.hooks.tf_data import dataset

        return dataset(self._loader)

    def torch(self) -> TorchBatches:
        """Return a PyTorch ``IterableDataset`` of whole batches, for any number of workers.

        See :class:`training.hooks.torch.TorchBatches`; ``loader.torch().loader(num_workers=4)`` is a
        ``DataLoader`` over it.
        """
        from training.hooks.torch import TorchBatches

        return TorchBatches(self._loader)

    def torch_map(self) -> TorchMap:
        """Return a map-style PyTorch ``Dataset`` whose item ``i`` is batch ``i`` of an epoch."""
        from training.hooks.torch import TorchMap

        return TorchMap(self._loader)

    def jax(self, device: Any = None) -> JaxBatches:
        """Return an iterable of batches as device arrays, one ahead of the training loop.

        See :class:`training.hooks.jax.JaxBatches`.
        """
        from training.hooks.jax import JaxBatches

        return JaxBatches(self._loader, device)
