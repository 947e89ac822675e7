"""Encoding from token embeddings: the same pass as from token ids, with gradients to the embeddings."""

from __future__ import annotations

import pytest
import torch

from erasebench import diffusion

TEXTS = ["a cat on a red background", "", "x " * 90]


def test_embeddings_of_real_tokens_give_the_encoding_of_their_text_bit_for_bit(tiny_pipe):
    embeddings = diffusion.token_table(tiny_pipe)[diffusion.tokenise(tiny_pipe, TEXTS)]
    assert embeddings.shape == (3, 77, 32)
    assert torch.equal(diffusion.encode_embeddings(tiny_pipe, embeddings), diffusion.encode(tiny_pipe, TEXTS))


def test_it_equals_the_layers_applied_by_hand(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    encoder = pipe.text_encoder
    x = torch.randn(2, 77, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    future = torch.full((77, 77), -torch.inf, dtype=torch.float64).triu(1)
    h = x + encoder.embeddings.position_embedding.weight
    for layer in encoder.encoder.layers:
        y, a = layer.layer_norm1(h), layer.self_attn
        q, k, v = (p(y).view(2, 77, 2, 16).transpose(1, 2) for p in (a.q_proj, a.k_proj, a.v_proj))
        weights = (q @ k.transpose(-1, -2) / 4 + future).softmax(-1)
        h = h + a.out_proj((weights @ v).transpose(1, 2).reshape(2, 77, 32))
        y = layer.mlp.fc1(layer.layer_norm2(h))
        h = h + layer.mlp.fc2(y * torch.sigmoid(1.702 * y))
    torch.testing.assert_close(
        diffusion.encode_embeddings(pipe, x), encoder.final_layer_norm(h), rtol=1e-10, atol=1e-10
    )


def test_gradients_by_finite_differences_and_causality(make_pipe):
    pipe = make_pipe(dtype=torch.float64)
    x = diffusion.token_table(pipe)[diffusion.tokenise(pipe, ["a cat"])].detach().clone().requires_grad_()
    weight = torch.randn(77, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (diffusion.encode_embeddings(pipe, x)[0] * weight).sum().backward()
    for row, column in ((0, 3), (2, 7), (76, 31)):
        ends = []
        for sign in (1, -1):
            moved = x.detach().clone()
            moved[0, row, column] += sign * 1e-6
            ends.append((diffusion.encode_embeddings(pipe, moved)[0] * weight).sum().item())
        assert x.grad[0, row, column].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
    moved = x.detach().clone()
    moved[0, 40] += 1
    before, after = (diffusion.encode_embeddings(pipe, e)[0] for e in (x.detach(), moved))
    assert torch.equal(before[:40], after[:40]) and not torch.equal(before[40:], after[40:])


def test_the_encoder_is_left_as_it_was_even_after_an_error(tiny_pipe):
    before = diffusion.encode(tiny_pipe, ["a cat"])
    with pytest.raises(ValueError, match="Sequence length"):
        diffusion.encode_embeddings(tiny_pipe, torch.zeros(1, 78, 32))
    assert torch.equal(diffusion.encode(tiny_pipe, ["a cat"]), before)
    assert not tiny_pipe.text_encoder.get_input_embeddings()._forward_hooks


def test_what_does_not_fit_is_refused(tiny_pipe, tiny_xl_pipe):
    with pytest.raises(ValueError, match=r"shape \[n, tokens, 32\]; got \[1, 77, 16\]"):
        diffusion.encode_embeddings(tiny_pipe, torch.zeros(1, 77, 16))
    with pytest.raises(ValueError, match="SDXL"):
        diffusion.encode_embeddings(tiny_xl_pipe, torch.zeros(1, 77, 32))
    with pytest.raises(ValueError, match="SDXL"):
        diffusion.token_table(tiny_xl_pipe)
