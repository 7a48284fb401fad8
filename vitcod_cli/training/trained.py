"""Model, EMA, optimizer and loss scaler as named tensors and JSON values, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from vitcod_cli.errors import VitcodError

FLAG = "--resume"


@dataclass(frozen=True)
class Trained:
    """What changes in training, and so makes up the state of a run.

    Attributes:
        ema: the averaged weights (EMA) are those of its ``module``.
        scaler: of the loss, disabled unless in float16.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: Optimizer
    scaler: torch.amp.GradScaler

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name."""
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema/{name}": value for name, value in self.ema.module.state_dict().items()}
        for name, state in self._optimizer_state():
            tensors |= {f"optimizer/{name}/{key}": v for key, v in state.items() if isinstance(v, Tensor)}
        for number, group in enumerate(self.optimizer.param_groups):
            tensors |= {f"group/{number}/{key}": v for key, v in group.items() if isinstance(v, Tensor)}
        return tensors

    def values(self) -> dict[str, Any]:
        """Everything else, as JSON values."""
        groups = self.optimizer.state_dict()["param_groups"]
        return {
            "scaler": self.scaler.state_dict(),
            "optimizer": {
                "class": type(self.optimizer).__name__,
                "groups": [{k: v for k, v in group.items() if _is_plain(v)} for group in groups],
                "state": {name: _plain_entries(state) for name, state in self._optimizer_state()},
            },
        }

    def is_finite(self) -> bool:
        """Whether all weights are."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put a state back.

        Raises:
            VitcodError: if it is of another model or optimizer.
        """
        saved = values["optimizer"]
        if saved["class"] != type(self.optimizer).__name__:
            raise VitcodError(
                f"{FLAG}: the run was trained with {saved['class']}, not {type(self.optimizer).__name__}; give "
                "the same --opt, or start afresh with --overwrite."
            )
        _load_weights(self.model, _part(tensors, "model/"))
        if self.ema is not None:
            # A run that had no EMA starts one from its weights.
            _load_weights(self.ema.module, _part(tensors, "ema/") or _part(tensors, "model/"))
        self._load_optimizer(_part(tensors, "optimizer/"), saved)
        self._load_groups(_part(tensors, "group/"), saved["groups"])
        if self.scaler.is_enabled() and values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])

    def _names(self) -> dict[int, str]:
        """The name of each parameter, by its number in the optimizer's state dict."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {number: names[id(parameter)] for number, parameter in enumerate(parameters)}

    def _optimizer_state(self) -> Iterator[tuple[str, dict[str, Any]]]:
        names = self._names()
        for number, state in self.optimizer.state_dict()["state"].items():
            yield names[number], state

    def _load_optimizer(self, tensors: Mapping[str, Tensor], saved: Mapping[str, Any]) -> None:
        state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in saved["state"].items()}
        for key, tensor in tensors.items():
            name, _, entry = key.rpartition("/")
            state.setdefault(name, {})[entry] = tensor
        current = self.optimizer.state_dict()
        by_number = {number: state[name] for number, name in self._names().items() if name in state}
        self.optimizer.load_state_dict({"state": by_number, "param_groups": current["param_groups"]})

    def _load_groups(self, tensors: Mapping[str, Tensor], saved: Sequence[Mapping[str, Any]]) -> None:
        """What some optimizers keep with their groups of parameters: a count of steps, a learnt step size."""
        # These the recipe says, and the schedule.
        ours = {"lr", "initial_lr", "weight_decay", "betas", "eps", "momentum"}
        for number, group in enumerate(self.optimizer.param_groups):
            number = min(number, len(saved) - 1)  # noqa: PLW2901
            values = {**saved[number], **_part(tensors, f"{number}/")}
            group.update({key: value for key, value in values.items() if key not in ours})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise VitcodError(
            f"{FLAG}: the saved run is of another model or mask ({str(error).splitlines()[-1].strip()}); give the "
            "same options as then, or start afresh with --overwrite."
        ) from error


def _plain_entries(state: Mapping[str, Any]) -> dict[str, Any]:
    entries = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
    if strange := [key for key, value in entries.items() if not _is_plain(value)]:
        raise VitcodError(
            f"The state of this --opt can't be saved (its {strange[0]}); choose another, such as adamw."
        )
    return entries


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
