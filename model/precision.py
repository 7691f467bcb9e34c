"""How exactly a GPU multiplies single precision numbers: with all bits, or with 10 (tf32)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def set_tf32(on: bool) -> None:
    """Let products of matrices and convolutions on a GPU keep 10 bits, for the whole process.

    By PyTorch's older names, which all versions know: its compiler reads them, and refuses to once
    the newer ones were written to.
    """
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on


def is_tf32() -> tuple[bool, bool]:
    """Whether products of matrices do, and convolutions."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@contextmanager
def single_precision() -> Iterator[None]:
    """All bits within; then as it was. PyTorch's convolutions keep 10 if nobody asks for more."""
    before = is_tf32()
    set_tf32(False)
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
