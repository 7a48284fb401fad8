"""Model, EMA, optimizer and loss scaler as named tensors and JSON values, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.optim import Optimizer

from vitcod_cli.errors import VitcodError
from vitcod_cli.training.optimizer_layout import Layout, check_savable, is_number, is_plain, problem_of

FLAG = "--resume"


@dataclass(frozen=True)
class Trained:
    """What changes in training, and so makes up the state of a run.

    Attributes:
        ema: the averaged weights (EMA) are those of its ``module``.
        scaler: of the loss, disabled unless in float16.
        layout: what the optimizer keeps, which a saved state must have.
    """

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    layout: Layout = field(default_factory=dict)

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
                "groups": [{k: v for k, v in group.items() if is_plain(v)} for group in groups],
                "state": {name: _plain_entries(state) for name, state in self._optimizer_state()},
            },
        }

    def is_finite(self) -> bool:
        """Whether all weights are."""
        return all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters())

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Put a state back.

        Args:
            values: :meth:`values`, once :func:`check_values` has seen them.

        Raises:
            VitcodError: if it is of another model or optimizer.
            ValueError: if it is damaged; says where.
        """
        saved = values["optimizer"]
        if saved["class"] != type(self.optimizer).__name__:
            raise VitcodError(
                f"{FLAG}: the run was trained with {shown(saved['class'])}, not {type(self.optimizer).__name__}; "
                "give the same --opt, or start afresh with --overwrite."
            )
        _load_weights(self.model, _part(tensors, "model/"))
        if self.ema is not None:
            # A run that had no EMA starts one from its weights.
            _load_weights(self.ema.module, _part(tensors, "ema/") or _part(tensors, "model/"))
        self._load_optimizer(_part(tensors, "optimizer/"), saved["state"])
        self._load_groups(_part(tensors, "group/"), saved["groups"])
        if self.scaler.is_enabled() and values["scaler"]:
            own = self.scaler.state_dict()
            self.scaler.load_state_dict(
                {**own, **{key: values["scaler"][key] for key in ("scale", "_growth_tracker")}}
            )
        averaged = [] if self.ema is None else list(self.ema.module.parameters())
        if not (self.is_finite() and all(bool(torch.isfinite(value).all()) for value in averaged)):
            raise ValueError("its weights are not finite")

    def _names(self) -> dict[int, str]:
        """The name of each parameter, by its number in the optimizer's state dict."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {number: names[id(parameter)] for number, parameter in enumerate(parameters)}

    def _optimizer_state(self) -> Iterator[tuple[str, dict[str, Any]]]:
        names = self._names()
        for number, state in self.optimizer.state_dict()["state"].items():
            yield names[number], state

    def _load_optimizer(self, tensors: Mapping[str, Tensor], saved: Mapping[str, Mapping[str, Any]]) -> None:
        state: dict[str, dict[str, Any]] = {name: dict(values) for name, values in saved.items()}
        for key, tensor in tensors.items():
            name, _, entry = key.rpartition("/")
            state.setdefault(name, {})[entry] = tensor
        current = self.optimizer.state_dict()
        by_number = {number: state[name] for number, name in self._names().items() if name in state}
        parameters = dict(self.model.named_parameters())
        for number, name in self._names().items():
            problem = problem_of(by_number.get(number, {}), parameters[name], self.layout)
            if problem is not None:
                raise ValueError(f"the optimizer's {shown(problem)} of {name} is not what it should be")
        self.optimizer.load_state_dict({"state": by_number, "param_groups": current["param_groups"]})

    def _load_groups(self, tensors: Mapping[str, Tensor], saved: Sequence[Mapping[str, Any]]) -> None:
        """What some optimizers keep with their groups of parameters: a count of steps, a learnt step size.

        Only numbers change in training; all else the recipe says, and the schedule.
        """
        ours = {"lr", "initial_lr", "weight_decay", "betas", "eps", "momentum", "params"}
        for number, group in enumerate(self.optimizer.param_groups):
            number = min(number, len(saved) - 1)  # noqa: PLW2901
            if number < 0:
                continue
            for key, value in {**saved[number], **_part(tensors, f"{number}/")}.items():
                now = group.get(key, 0)
                scalar = isinstance(value, Tensor) and value.numel() == 1 and not bool(torch.isnan(value))
                if (
                    key not in ours
                    and (is_number(value) or scalar)
                    and (is_number(now) or isinstance(now, Tensor))
                ):
                    group[key] = value


def check_values(values: Mapping[str, Any]) -> None:
    """Look at the JSON part of a state that anybody may have written.

    Raises:
        ValueError: if it isn't of the form of :meth:`Trained.values`; says where.
    """
    optimizer, scaler = values.get("optimizer"), values.get("scaler")
    if not isinstance(optimizer, Mapping) or not isinstance(optimizer.get("class"), str):
        raise ValueError("its optimizer can't be understood")
    groups, state = optimizer.get("groups"), optimizer.get("state")
    if not isinstance(groups, list) or not all(_is_plain_dict(group) for group in groups):
        raise ValueError("its groups of the optimizer can't be understood")
    if not isinstance(state, Mapping) or not all(_is_plain_dict(entries) for entries in state.values()):
        raise ValueError("its state of the optimizer can't be understood")
    if not isinstance(scaler, Mapping):
        raise ValueError("its scaler can't be understood")
    if scaler:
        scale, tracker = scaler.get("scale"), scaler.get("_growth_tracker")
        if not (isinstance(scale, (int, float)) and 0 < scale < 3e38):
            raise ValueError("its scaler can't be understood")
        if not (isinstance(tracker, int) and 0 <= tracker < 2**31):
            raise ValueError("its scaler can't be understood")


def shown(value: object, limit: int = 60) -> str:
    """A value that a stranger may have written, fit for the middle of a sentence."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _is_plain_dict(values: Any) -> bool:
    return isinstance(values, Mapping) and all(is_plain(value) for value in values.values())


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, value in module.state_dict().items():  # loading would convert others without a word
        if name in weights and weights[name].dtype != value.dtype:
            raise ValueError(f"its {name} is {weights[name].dtype}, not {value.dtype}")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        why = shown(str(error).splitlines()[-1].strip(), 300)
        raise VitcodError(
            f"{FLAG}: the saved run is of another model or mask ({why}); give the same options as then, or start "
            "afresh with --overwrite."
        ) from error


def _plain_entries(state: Mapping[str, Any]) -> dict[str, Any]:
    check_savable(state)
    return {key: value for key, value in state.items() if not isinstance(value, Tensor)}
