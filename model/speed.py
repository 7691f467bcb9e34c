"""What makes a training step faster and changes nothing else: one call, `prepare`.

Precision is lowered in the embedding, where almost all of the work is. The flow stays in single
precision, or a GPU's tf32: its splines are where densities are made. Validation goes the way of
training; samples and densities of a trained run are always computed in single precision.

Not covered yet: none of it was measured on a GPU. There are no CUDA graphs: the splines of nflows,
by which training goes, ask the host twice a layer whether their input is within their bounds.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW

from model.config import OptimiserConfig, SpeedConfig
from model.estimator import Estimator
from model.precision import set_tf32
from storage.errors import InputError

TF32_CAPABILITY = (8, 0)  # of CUDA: Ampere


@dataclass(frozen=True)
class Speed:
    """What is on, on a device. The attributes are those of `SpeedConfig`."""

    precision: str
    channels_last: bool
    fused: bool
    compile: bool


def resolve(config: SpeedConfig, device: torch.device) -> Speed:
    """Decide what was left to the device.

    Args:
        config: What was asked for.
        device: Where the training runs.

    Raises:
        InputError: The device cannot do what was asked for.
    """
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    modern = capability >= TF32_CAPABILITY
    precision = config.precision or ("tf32" if modern else "fp32")
    if precision == "tf32" and not modern:
        raise InputError(
            f"speed.precision: tf32 needs a GPU of compute capability 8.0 or more, the device is "
            f"{name_of(device)}; give fp32 or bf16"
        )
    if precision == "bf16" and device.type == "cuda" and not modern:
        raise InputError(
            f"speed.precision: bf16 needs a GPU of compute capability 8.0 or more, the device is "
            f"{name_of(device)}; give fp32"
        )
    return Speed(
        precision=precision,
        # On a CPU it does not pay. On a GPU it was not measured: tensor cores like it, but group
        # norms turn what comes in around, unless they are compiled.
        channels_last=bool(config.channels_last),
        fused=True if config.fused is None else config.fused,
        compile=bool(config.compile),
    )


def prepare(
    estimator: Estimator,
    device: torch.device,
    config: OptimiserConfig,
    speed: SpeedConfig,
    state: dict[str, Any] | None = None,
) -> AdamW:
    """Bring an estimator to the device, ready to be trained, and make its optimiser.

    Args:
        estimator: Changed in place; its weights keep their names and values.
        device: Where the training runs.
        config: Of the optimiser.
        speed: What makes it faster.
        state: Of the optimiser of a run that goes on, perhaps on another device.

    Raises:
        InputError: The device cannot do what was asked for.
    """
    chosen = resolve(speed, device)
    estimator.to(device).train()
    if chosen.channels_last:
        estimator.embedding.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if chosen.compile:
        estimator.embedding.compile()  # in place: the weights keep their names
    estimator.half_embedding = chosen.precision == "bf16"
    set_tf32(chosen.precision != "fp32")
    optimiser = AdamW(estimator.parameters(), weight_decay=config.weight_decay, fused=chosen.fused)
    if state is not None:
        # The state tells how the run went before, and would have its way.
        groups = [{**group, "fused": chosen.fused} for group in state["param_groups"]]
        optimiser.load_state_dict({**state, "param_groups": groups})
        _lie_like_weights(optimiser)
    return optimiser


def _lie_like_weights(optimiser: AdamW) -> None:
    """Lay what is remembered of each weight out in memory as the weight is.

    It comes as it lay when it was saved, with the channels together or not. A fused step walks
    through the memory of both side by side, and would take one number's past for another's.
    """
    for weight, memory in optimiser.state.items():
        for name, value in memory.items():
            if value.shape == weight.shape:
                memory[name] = torch.empty_like(weight).copy_(value)


def name_of(device: torch.device) -> str:
    """What a device is called: cpu, or the number and name of the GPU."""
    if device.type != "cuda":
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"
