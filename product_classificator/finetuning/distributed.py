"""Device, dtype and processes of a fine-tuning.

Under `accelerate launch` all processes share every batch: each encodes its share, all vectors are gathered, each
computes the loss of the whole batch and backpropagates the (cached) gradient of its own vectors, and the gradients of
the parameters are summed. Up to rounding that is the step of one process on the same batch.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from product_classificator.encoders.torch_clip import Compute
from product_classificator.errors import DataError
from product_classificator.types import Rows

FinetuneDtype = Literal["auto", "float32", "bfloat16"]
_TIMEOUT = timedelta(days=1)  # processes wait while the main one fits heads
Result = TypeVar("Result")


class Distributed:
    """Device, dtype and processes of a fine-tuning; the main process fits heads, writes files and logs.

    Device "auto" is a GPU if there is one; of several processes each has its own. With "bfloat16" matrix products run
    in it and weights stay in float32; "auto" does so on a GPU that can. Unknown ones are a `DataError`.
    """

    def __init__(self, device: str = "auto", dtype: FinetuneDtype = "auto") -> None:
        if dtype not in get_args(FinetuneDtype):
            raise DataError(f"dtype must be one of {', '.join(get_args(FinetuneDtype))}, got {dtype!r}")
        # Without a GPU, processes only connect if accelerate is explicitly restricted to the CPU.
        state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=_TIMEOUT)
        self.wait: Callable[[], None] = state.wait_for_everyone
        self.processes, self.index, self.is_main = state.num_processes, state.process_index, state.is_main_process
        self.device = Compute(device if self.processes == 1 else str(state.device)).device
        can_bfloat16 = self.device.startswith("cuda") and torch.cuda.is_bf16_supported()
        self.dtype = ("bfloat16" if can_bfloat16 else "float32") if dtype == "auto" else dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """Return a context in which networks compute in `dtype`."""
        return torch.autocast(self.device.partition(":")[0], torch.bfloat16, enabled=self.dtype == "bfloat16")

    def share(self, rows: Rows) -> Rows:
        """Return this process's share of `rows`, of equal length everywhere; the last shares may repeat rows."""
        size = -(-len(rows) // self.processes)
        return np.resize(rows, size * self.processes)[self.index * size :][:size]

    def from_main(self, compute: Callable[[], Result]) -> Result:
        """Return the result of `compute`, which only the main process calls."""
        results = [compute() if self.is_main else None]
        broadcast_object_list(results)
        return results[0]  # type: ignore[return-value]
