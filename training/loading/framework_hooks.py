"""How a loader is given to each framework; none is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from featurestore.errors import InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    from training.hooks.jax import JaxBatches, JaxDeviceRows
    from training.hooks.keras import KerasBatches
    from training.hooks.torch import TorchBatches, TorchMap
    from training.hooks.torch_device import TorchDeviceRows
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

        self._require_host("keras")
        return KerasBatches(self._loader, class_weight, inputs)

    def xgboost(self, page_bytes: int | str | None = None) -> XGBoostPages:
        """Return an ``xgboost.DataIter`` over the rows in table order, for external memory."""
        from training.hooks.xgboost import XGBoostPages

        self._require_host("xgboost")
        return XGBoostPages(self._loader, page_bytes)

    def tf_data(self) -> Any:
        """Return a ``tf.data.Dataset`` of ``(inputs, label)`` with known cardinality."""
        from training.hooks.tf_data import dataset

        self._require_host("tf_data")
        return dataset(self._loader)

    def torch(self, device: Any = None) -> TorchBatches | TorchDeviceRows:
        """Return a PyTorch ``IterableDataset`` of whole batches, for any number of workers.

        See :class:`training.hooks.torch.TorchBatches`; ``loader.torch().loader(num_workers=4)`` is a
        ``DataLoader`` over it. With ``hold="device"``, what holds the rows on ``device`` and gathers
        batches there: :class:`training.hooks.torch_device.TorchDeviceRows`.

        Raises
        ------
        InvalidInputError
            If a device is given without ``hold="device"``.
        """
        if self._loader.on_device:
            from training.hooks.torch_device import TorchDeviceRows

            return TorchDeviceRows(self._loader, device)
        if device is not None:
            raise InvalidInputError(
                f"device={device!r} is for rows that are held there",
                "make the loader with hold='device', or move each batch with .to(device)",
            )
        from training.hooks.torch import TorchBatches

        return TorchBatches(self._loader)

    def torch_map(self) -> TorchMap:
        """Return a map-style PyTorch ``Dataset`` whose item ``i`` is batch ``i`` of an epoch."""
        from training.hooks.torch import TorchMap

        self._require_host("torch_map")
        return TorchMap(self._loader)

    def jax(self, device: Any = None) -> JaxBatches | JaxDeviceRows:
        """Return an iterable of batches as device arrays, one ahead of the training loop.

        See :class:`training.hooks.jax.JaxBatches`; with ``hold="device"``,
        :class:`training.hooks.jax.JaxDeviceRows`.
        """
        from training.hooks.jax import JaxBatches, JaxDeviceRows

        if self._loader.on_device:
            return JaxDeviceRows(self._loader, device)
        return JaxBatches(self._loader, device)

    def _require_host(self, hook: str) -> None:
        """Refuse a hook that does not take rows from a device."""
        if self._loader.on_device:
            raise UnsupportedError(
                f"loader.{hook}() does not take rows that are held on a device",
                "leave hold='device' out (hold='memory' holds them here), or use loader.torch() or "
                "loader.jax()",
            )
