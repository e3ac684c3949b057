"""Memory of NVIDIA GPUs, read through NVML if ``pynvml`` is there; standard library otherwise.

NVML sees processes by the numbers of the host. Where those are not ours (in a container), what is
told is how much more of the devices is in use than at the start, by whomever.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any


class GpuMemory:
    """The GPUs of this machine."""

    def __init__(self, nvml: Any, devices: list[Any]) -> None:
        self._nvml, self._devices = nvml, devices
        self._before = self._in_use()
        self._own = False

    @classmethod
    def find(cls) -> GpuMemory | None:
        """Return the GPUs; None without NVML or a device."""
        try:
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            devices = [
                nvml.nvmlDeviceGetHandleByIndex(one) for one in range(nvml.nvmlDeviceGetCount())
            ]
            return cls(nvml, devices) if devices else None
        except Exception:  # noqa: BLE001 - no driver, an old one, a broken binding: no GPU to look at
            return None

    @property
    def method(self) -> str:
        """``"own"`` if NVML tells what these processes hold, else ``"device"``."""
        return "own" if self._own else "device"

    def used_by(self, pids: Collection[int]) -> int:
        """Return the device bytes that these processes hold, as far as NVML tells."""
        try:
            own = [
                int(one.usedGpuMemory)
                for device in self._devices
                for one in self._nvml.nvmlDeviceGetComputeRunningProcesses(device)
                if one.pid in pids and one.usedGpuMemory
            ]
            self._own = self._own or bool(own)
            return sum(own) if self._own else max(0, self._in_use() - self._before)
        except Exception:  # noqa: BLE001 - a device that is lost must not end the recording
            return 0

    def _in_use(self) -> int:
        return sum(int(self._nvml.nvmlDeviceGetMemoryInfo(device).used) for device in self._devices)
