"""Adaptive guided erasure: EAP whose adversarial word is also what the concept is turned into.

Bui, Vu, Vuong, Le, Montague, Abraham and Phung, "Fantastic Targets for Concept Erasure in Diffusion Models and Where To
Find Them", ICLR 2025, arXiv:2501.18950.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erasebench.diffusion.encoding import Encoding
from methods.eap import EAP, Draw
from methods.on_policy import Denoiser, joined


@dataclass(frozen=True, kw_only=True)
class AGE(EAP):
    r"""Alternates between layers theta, which minimise, and a choice pi among words, which maximises the second term of

    .. math:: d(\theta(z, c), \theta^*(z, r) - \eta (\theta^*(z, c) - \theta^*(z, r)))
              + \lambda\, d(\theta(z', r), \theta^*(z', r)), \qquad r = G(\pi)\, E

    with everything as in :class:`methods.eap.EAP`, whose target has the empty text where this has r.

    Official program: github.com/tuananhbui89/Adaptive-Guided-Erasure at b56a903, train_age.py. Its update of pi
    detaches the word in the first term, so that only the second one moves pi, though the paper maximises both; so here.

    Deviations: EAP's (words of the concept are never chosen, multi-word entries of a vocabulary are dropped, exact
    k-means). The vocabularies, 3000 English words for nudity and ImageNet's class names otherwise, are not here:
    ``pool``.

    Cost: EAP's. Fields: EAP's.

    >>> AGE(temperature=0.0)
    Traceback (most recent call last):
    ValueError: temperature must be a finite number > 0; got 0.0
    """

    closest: int = 100
    centres: int = 100
    temperature: float = 0.1

    @torch.no_grad()
    def targets(
        self, model: Denoiser, unet: Any, text: Encoding, adversarial: Encoding, draws: Sequence[Draw]
    ) -> tuple[Tensor, Tensor]:
        """Latents [2b, ...] drawn with the concept and then the adversarial text, and what theta should predict."""
        z = self.both(model, unet, joined(text, adversarial), draws)
        times, asked = [draw.timestep for draw in draws] * 3, joined(text, adversarial, adversarial)
        e = model.epsilon(model.pipe.unet, torch.cat([z[: len(draws)], z]), times, asked)
        e_concept, e_towards, e_kept = e.chunk(3)
        return z, torch.cat([e_towards - self.eta * (e_concept - e_towards), e_kept])
