"""LEACE: the smallest affine change of text states after which no linear classifier finds the concept in them.

Belrose, Schneider-Joseph, Ravfogel, Cotterell, Raff and Biderman, "LEACE: Perfect linear concept erasure in closed
form", NeurIPS 2023, arXiv:2306.03819; the eraser is their package ``concept-erasure`` (MIT). Its use on a text-to-image
model is ours: no paper defines which texts and rows it is fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from concept_erasure import LeaceFitter
from torch import Tensor, nn

from erasebench import fields
from erasebench.diffusion import edited_weight, fork, weight64
from erasebench.protocols import Method
from erasebench.types import Concept, Pipeline
from methods.template_rows import sentence_rows


@dataclass(frozen=True, kw_only=True)
class LEACE(Method):
    r"""Returns the model whose cross-attention reads every text row x [d] as

    .. math:: r(x) = x - P (x - \mu), \qquad P = W^+ U U^T W, \quad W = (\Sigma_{xx}^{1/2})^+,

    U an orthonormal basis of the columns of W Sigma_xz, mu the mean of the rows and z their labels: one column a
    concept, 1 in its rows. The classes' means of r(x) agree, so a linear classifier fitted to the same rows does no
    better than a constant, and r is the affine map with this property that changes the rows least in mean square.

    **Folded into the weights.** With M = I - P and b = P mu, r(x) = M x + b. Keys W_k r(x) are W_k M x + W_k b; the
    last term adds q . W_k b to the score of every token alike, which the softmax over tokens cancels. Values are
    W_v M x + W_v b; attention weights sum to one, so every query's output gains W_v b, and the layer's output
    W_o W_v b. Hence to_k <- to_k M, to_v <- to_v M, to_out.bias <- to_out.bias + W_o W_v b give exactly the images of
    the original model reading r(x), in both branches of guidance, for texts and for embeddings that an attack hands
    over.

    Deviations: the paper scrubs a language model's hidden states, at one or at all layers; here it is the text
    encoder's output. Ours: the rows are those of the concept's phrases and of ``others`` in every template, from the
    last subject token to the end of text and ``pads`` rows of padding; all count alike. Fitted in float64.

    Cost: one eigendecomposition and one or two singular value decompositions of d x d; no evaluation of the UNet.

    Several concepts are erased jointly: z has a column for each, P at most as many dimensions.

    Args:
        templates: sentences with one ``{}`` for a text.
        others: texts without the concept, label 0.
        concept_others: the concept's anchor, neighbours and preserved texts are such texts too.
        phrases: label 1 has the concept's ``name`` (its first phrase) or ``all`` its phrases.
        pads: padding rows after the end of text that count, >= 0.
        shrinkage: estimate Sigma_xx by the package's optimal linear shrinkage; False: the sample covariance.
        constrain_trace: mix P with the orthogonal projection where r would raise the variance; exactness is lost there.
        svd_tol: singular values of W Sigma_xz below it are dropped, > 0.

    Raises:
        ValueError: a value out of its range; no text without the concept; a UNet whose attention normalises keys or has
            no output bias, where the fold does not hold.
        ArithmeticError: the eraser is not finite.

    >>> LEACE(templates=["a {}"], svd_tol=0)
    Traceback (most recent call last):
    ValueError: svd_tol must be a finite number > 0; got 0; the package uses 0.01
    """

    templates: tuple[str, ...]
    others: tuple[str, ...] = ()
    concept_others: bool = True
    phrases: Literal["name", "all"] = "all"
    pads: int = 8
    shrinkage: bool = True
    constrain_trace: bool = True
    svd_tol: float = 0.01

    together = ("joint", "sequence")

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", fields.texts("templates", self.templates, least=1))
        object.__setattr__(self, "others", fields.texts("others", self.others))
        if wrong := next((t for t in self.templates if t.count("{}") != 1), None):
            raise ValueError(f"templates must hold one '{{}}' each for a text; got {wrong!r}; add or remove one")
        fields.choice("phrases", self.phrases, ("name", "all"))
        fields.integer("pads", self.pads, least=0, hint="0 stops at the end of text")
        for switch in ("concept_others", "shrinkage", "constrain_trace"):
            fields.flag(switch, getattr(self, switch))
        fields.number("svd_tol", self.svd_tol, above=0, hint="the package uses 0.01")

    def texts(self, concept: Concept) -> tuple[list[str], list[int]]:
        """The texts to fit to, and for each the number of its concept among ``concept.singles``, or -1 for none.

        Raises a ValueError if every text names the concept.
        """
        erased = {_plain(phrase) for part in concept.singles for phrase in part.phrases}
        further = [*concept.preserve, *(name for names in concept.neighbours.values() for name in names)]
        further += [part.anchor for part in concept.singles]
        others = [t for t in (*self.others, *(further if self.concept_others else ())) if t.strip()]
        others = [t for t in dict.fromkeys(others) if _plain(t) not in erased]
        if not others:
            raise ValueError(
                f"others must hold a text that does not name {concept.name!r}; got none; write method.others=[dog,car]"
            )
        texts, labels = others, [-1] * len(others)
        for i, part in enumerate(concept.singles):
            named = part.phrases if self.phrases == "all" else part.phrases[:1]
            texts, labels = [*texts, *named], [*labels, *[i] * len(named)]
        return texts, labels

    def check(self, concept: Concept, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """A ValueError, before any weight is loaded, if there is no text without the concept."""
        self.texts(concept)

    @torch.no_grad()
    def eraser(self, pipe: Pipeline, concept: Concept) -> tuple[Tensor, Tensor]:
        """M [d, d] and b [d] float64 of r(x) = M x + b."""
        texts, labels = self.texts(concept)
        rows, owner = sentence_rows(pipe, texts, self.templates, self.pads)
        hot = torch.stack([torch.tensor(labels) == i for i in range(len(concept.singles))], dim=1).double()
        fitter = LeaceFitter(
            rows.shape[1], hot.shape[1], dtype=torch.float64, shrinkage=self.shrinkage,
            constrain_cov_trace=self.constrain_trace, svd_tol=self.svd_tol,
        )  # fmt: skip
        found = fitter.update(rows, hot[owner]).eraser
        shift = found.proj_left @ (found.proj_right @ fitter.mean_x)
        if not (torch.isfinite(found.P).all() and torch.isfinite(shift).all()):
            raise ArithmeticError("eraser must be finite; got nan or inf; check the text encoder, or raise svd_tol")
        return found.P, shift

    @torch.no_grad()
    def erase(self, pipe: Pipeline, concept: Concept) -> Pipeline:
        """A pipeline whose cross-attention reads r(x); it shares all but its edited tensors with ``pipe``."""
        return folded(pipe, *self.eraser(pipe, concept))


def folded(pipe: Pipeline, matrix: Tensor, shift: Tensor) -> Pipeline:
    """``fork(pipe)`` that draws from text rows x what ``pipe`` draws from ``matrix @ x + shift``, see :class:`LEACE`.

    Args:
        matrix: M [d, d] float64.
        shift: b [d] float64.

    Raises:
        ValueError: an attention in which a constant added to all keys and values is no constant of its output.
    """
    erased = fork(pipe)
    for name, attention in _cross_attentions(erased):
        out = attention.to_out[0]
        if any(getattr(attention, norm, None) is not None for norm in ("norm_k", "norm_cross")) or out.bias is None:
            raise ValueError(
                f"{name} must neither normalise its keys nor lack an output bias; it does; use another method"
            )
        constant = weight64(out) @ (weight64(attention.to_v) @ shift)
        bias = out.bias.detach().to("cpu", torch.float64) + constant
        out.bias = nn.Parameter(bias.to(out.bias.device, out.bias.dtype), requires_grad=False)
        for layer in (attention.to_k, attention.to_v):
            layer.weight = edited_weight(layer, matrix)
    return erased


def _cross_attentions(pipe: Pipeline) -> Iterator[tuple[str, Any]]:
    found = [(name, module) for name, module in pipe.unet.named_modules() if name.endswith("attn2")]
    if not found:
        raise ValueError("unet must have cross-attention layers attn2; found none")
    yield from found


def probe(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, ridge: float = 1e-6) -> float:
    """Balanced accuracy in [0, 1] on ``test`` of a linear classifier fitted to ``train``: 0.5 is a coin's.

    Least squares of +1 and -1 with an intercept, both classes weighted alike; a linear probe in the usual sense, solved
    in the n x n dual so that rows may be wider than they are many.

    Args:
        train, test: rows [n, d] and [m, d] float64.
        labels, truth: bool [n] and [m], both values in each.
        ridge: added to the squared weights, times the mean squared norm of the centred rows.

    >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
    >>> probe(x, x[:, 0] > 1, x, x[:, 0] > 1)
    1.0
    """
    share = torch.where(labels, 1 / labels.sum(), 1 / (~labels).sum()).double() / 2  # sums to one
    centre, root = share @ train, share.sqrt()[:, None]
    rows, wanted = (train - centre) * root, torch.where(labels, 1.0, -1.0).double()[:, None] * root
    gram = rows @ rows.T
    dual = torch.linalg.solve(gram + (ridge * gram.trace() + 1e-300) * torch.eye(len(gram), dtype=gram.dtype), wanted)
    found = ((test - centre) @ (rows.T @ dual))[:, 0] > 0
    return float((found[truth].double().mean() + (~found[~truth]).double().mean()) / 2)


def _plain(text: str) -> str:
    return " ".join(text.split()).lower()
