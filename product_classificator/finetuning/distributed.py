"""Where a tuning computes: on which device, in which precision, and together with which other processes.

Started alone, a process does everything. Started by `accelerate launch` on several GPUs or machines, processes share
every batch: each encodes its share of the pairs, the vectors of all are gathered, each computes the loss of the whole
batch and carries the gradient of its own vectors on through its own share, and the gradients of the parameters are
added up. That is the step of one process on the same batch, up to rounding: photos are compared with the texts of all
processes. Vectors need not carry gradients from one process to another, since their gradients are computed before
(cached gradients, see `contrast`).
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather, reduce
from torch import Tensor

from product_classificator.encoders.torch_clip import Compute
from product_classificator.errors import DataError
from product_classificator.types import Rows

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")

_PATIENCE = timedelta(days=1)
"""How long processes wait for the first of them, which fits heads alone."""

Found = TypeVar("Found")


class Distributed:
    """Device, precision and processes of a tuning.

    Args:
        device: as torch names it; "auto": the GPU where there is one. Of several processes each has its own.
        precision: "bfloat16" runs matrix products in it and keeps weights in float32; "auto" does so on a GPU that
            can.

    Attributes:
        device: where this process computes.
        precision: "float32" or "bfloat16".
        processes: how many there are.
        is_main: whether this is the first: it fits heads, writes files and talks.

    Raises:
        DataError: there is no such device or precision.
    """

    def __init__(self, device: str = "auto", precision: Precision = "auto") -> None:
        if precision not in PRECISIONS:
            raise DataError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        # Where there is no GPU, processes find one another only if accelerate is told to stay on the CPU.
        is_cpu = device == "cpu" or not torch.cuda.is_available()
        self._state = PartialState(cpu=is_cpu, timeout=_PATIENCE)
        self.processes: int = self._state.num_processes
        self.is_main: bool = self._state.is_main_process
        self.device = Compute(device if self.processes == 1 else str(self._state.device)).device
        can_bfloat16 = self.device.startswith("cuda") and torch.cuda.is_bf16_supported()
        self.precision = ("bfloat16" if can_bfloat16 else "float32") if precision == "auto" else precision

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns a block in which networks compute in the precision of the distributed."""
        kind = torch.device(self.device).type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def share(self, rows: Rows) -> Rows:
        """Returns this process's share of `rows`, of the same length everywhere; the last ones may hold repeats."""
        if self.processes == 1:
            return rows
        each = -(-len(rows) // self.processes)
        padded = np.resize(rows, each * self.processes)
        return padded[self._state.process_index * each :][:each]

    def gather(self, vectors: Tensor, n_rows: int) -> Tensor:
        """Returns the (n_rows, dim) vectors of all processes, in order; `vectors` are those of this one's share."""
        every: Tensor = gather(vectors.contiguous())
        return every[:n_rows]

    def own(self, every: Tensor, each: int) -> Tensor:
        """Returns what belongs to this process's share of `each` rows of what `gather` gave; zeros for repeats."""
        padded = every.new_zeros((each * self.processes, *every.shape[1:]))
        padded[: len(every)] = every
        return padded[self._state.process_index * each :][:each]

    def add_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Adds up the gradients of all processes."""
        for parameter in parameters:
            if self.processes > 1 and parameter.grad is not None:
                parameter.grad = reduce(parameter.grad, "sum")

    def any(self, is_so: bool) -> bool:
        """Tells whether it is so in any process; each must ask."""
        if self.processes == 1:
            return is_so
        return bool(reduce(torch.tensor(float(is_so), device=self.device), "sum") > 0)

    def from_main(self, compute: Callable[[], Found]) -> Found:
        """Returns what `compute` answers in the first process, where alone it is called."""
        if self.processes == 1:
            return compute()
        found = [compute() if self.is_main else None]
        broadcast_object_list(found)
        return found[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Waits until every process is here."""
        self._state.wait_for_everyone()

    def is_mine(self, number: int) -> bool:
        """Tells whether a numbered piece of work is this process's."""
        return number % self.processes == int(self._state.process_index)
