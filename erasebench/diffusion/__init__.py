"""Diffusers pipelines as this benchmark uses them: the only folder that touches a pipeline's insides."""

from erasebench.diffusion.autoencoding import picture_latents
from erasebench.diffusion.encoding import (
    check_length,
    cut_texts,
    encode,
    encode_embeddings,
    last_token,
    token_table,
    tokenise,
)
from erasebench.diffusion.flow import denoiser, is_flow, packed, partway, text_rows, velocity
from erasebench.diffusion.loading import load
from erasebench.diffusion.sampling import generate, latent_shape, noise, projected_once
from erasebench.diffusion.weights import (
    apply_matrix,
    apply_tensors,
    changed_tensors,
    cross_attention_projections,
    edited_weight,
    fingerprint,
    fork,
    weight64,
)

__all__ = [
    "apply_matrix",
    "apply_tensors",
    "changed_tensors",
    "check_length",
    "cross_attention_projections",
    "cut_texts",
    "denoiser",
    "edited_weight",
    "encode",
    "encode_embeddings",
    "fingerprint",
    "fork",
    "generate",
    "is_flow",
    "last_token",
    "latent_shape",
    "load",
    "noise",
    "packed",
    "partway",
    "picture_latents",
    "projected_once",
    "text_rows",
    "token_table",
    "tokenise",
    "velocity",
    "weight64",
]
