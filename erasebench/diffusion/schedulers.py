"""Samplers by the names papers use, on a model's own noise schedule. Import from ``erasebench.diffusion``."""

from __future__ import annotations

from typing import Any

import torch

from erasebench import fields
from erasebench.types import Pipeline, Sampler

# What a model was trained with; a sampler of another name must not change it.
TRAINED = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)
LEADING: dict[str, Any] = {"timestep_spacing": "leading", "steps_offset": 1}
# name -> class of diffusers, and its settings where they are not the class's own
SCHEDULERS: dict[Sampler, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {**LEADING, "clip_sample": False, "set_alpha_to_one": False}),
    "pndm": ("PNDMScheduler", {**LEADING, "skip_prk_steps": True, "set_alpha_to_one": False}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "euler": ("EulerDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def check_scheduler(value: object) -> None:
    """Refuse a sampler of another name; None is the model's own.

    >>> check_scheduler("k_lms")
    Traceback (most recent call last):
    ValueError: model.scheduler must be one of ddim, pndm, lms, dpm++, euler, unipc; got 'k_lms'; did you mean lms?
    """
    if value is not None:
        fields.choice("model.scheduler", value, SCHEDULERS)


def scheduler_of(pipe: Pipeline, name: Any) -> Any:
    """A sampler of that name, with the noise schedule and the prediction (noise or velocity) of the model's own.

    - ``ddim``: deterministic (eta 0), leading timesteps 981, ..., 1 for 50 steps, as in ESD's and MACE's programs
      (Song, Meng and Ermon, arXiv:2010.02502).
    - ``pndm``: Stable Diffusion 1.4's own in diffusers, PLMS without Runge-Kutta steps; 51 evaluations for 50 steps
      (Liu et al., arXiv:2202.09778).
    - ``lms``: linear multistep of order 4 on 50 evenly spaced timesteps 999, ..., 0, as RECE, UnlearnDiffAtk and ESD's
      evaluation set it up: ``LMSDiscreteScheduler(0.00085, 0.012, "scaled_linear", 1000)``.
    - ``dpm++``: DPM-Solver++ 2M (Lu et al., arXiv:2211.01095); ``euler``: Karras et al.'s Euler without churn
      (arXiv:2206.00364); ``unipc``: UniPC of order 2 (Zhao et al., arXiv:2302.04867); each with diffusers' defaults.

    Raises:
        ValueError: an unknown name; a model trained with flow matching, which has no such schedule.
    """
    import diffusers

    check_scheduler(name)
    config = pipe.scheduler.config
    if config.get("beta_schedule") is None:
        raise ValueError(
            f"model.scheduler must be null for this model; got {name!r}; {type(pipe.scheduler).__name__} has no betas"
        )
    kind, settings = SCHEDULERS[name]
    made = getattr(diffusers, kind)
    known = made().config
    trained = {key: config[key] for key in TRAINED if config.get(key) is not None and key in known}
    lost = [key for key in TRAINED if config.get(key) and key not in known]
    if lost:
        raise ValueError(f"model.scheduler must keep the model's {lost[0]}; {name} cannot; choose ddim or euler")
    return made(**{**trained, **settings})


def predicts_velocity(scheduler: Any) -> bool:
    """Whether the model's output is the velocity v = sqrt(a) e - sqrt(1 - a) x_0 instead of the noise e."""
    return bool(scheduler.config.get("prediction_type") == "v_prediction")


def level(scheduler: Any, step: int) -> torch.Tensor:
    """alpha_bar where the model is asked at a step of a set-up sampler, scalar; at most steps 0 < alpha_bar < 1.

    Samplers with sigmas are asked between the timesteps of the training, too: alpha_bar = 1 / (1 + sigma^2).
    """
    if (sigmas := getattr(scheduler, "sigmas", None)) is not None:
        return 1 / (1 + sigmas[step].double() ** 2)
    return scheduler.alphas_cumprod.double()[int(scheduler.timesteps[step])]


def noise_from(velocity: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """e = sqrt(a) v + sqrt(1 - a) x_t: the noise that a velocity says (Salimans and Ho, arXiv:2202.00512).

    >>> x0, e, a = torch.tensor([2.0]), torch.tensor([-1.0]), torch.tensor(0.36)
    >>> noise_from(0.6 * e - 0.8 * x0, 0.6 * x0 + 0.8 * e, a)
    tensor([-1.])
    """
    a = alpha.to(x.device)
    return (a.sqrt() * velocity + (1 - a).sqrt() * x).to(velocity.dtype)


def velocity_from(noise: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """v = (e - sqrt(1 - a) x_t) / sqrt(a), the inverse of :func:`noise_from`; a is taken as 1e-8 at least."""
    a = alpha.to(x.device).clamp(min=1e-8)
    wide = torch.promote_types(noise.dtype, torch.float32)
    return ((noise.to(wide) - (1 - a).sqrt() * x.to(wide)) / a.sqrt()).to(noise.dtype)
