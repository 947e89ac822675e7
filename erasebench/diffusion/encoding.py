"""Text as the UNet gets it: token ids, hidden states, SDXL's pooled states. Import from ``erasebench.diffusion``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from erasebench.devices import halving
from erasebench.diffusion.flow import encode_flow, is_flow, longest_tokenizer
from erasebench.diffusion.offloading import device_of
from erasebench.types import Pipeline

FLOW_TEXTS_KEPT = 64  # of 512 rows of 4096: 540 MB in float32
TEXTS_KEPT = 512  # encoded texts kept while generating: 120 MB for Stable Diffusion 1.x, 320 MB for XL


class Encoding(NamedTuple):
    """Texts as the UNet gets them: states [n, tokens, width]; pooled [n, width] for SDXL, else [n, 0]."""

    states: torch.Tensor
    pooled: torch.Tensor


def tokenise(pipe: Pipeline, texts: Sequence[str]) -> torch.Tensor:
    """Token ids as the pipeline makes them: padded and truncated to the tokenizer's length (SDXL: its first tokenizer).

    Returns:
        int64 [n, model_max_length], on the CPU.
    """
    return _tokens(pipe.tokenizer, texts).input_ids


def last_token(pipe: Pipeline, texts: Sequence[str]) -> torch.Tensor:
    """Row of each text's last BPE token, ``attention_mask.sum() - 2``: where UCE and RECE read a concept.

    The row of the start token, 0, for ``""`` and ``" "``, which have no token of their own.

    Returns:
        int64 [n].
    """
    return _tokens(pipe.tokenizer, texts).attention_mask.sum(dim=1) - 2


def check_length(pipe: Pipeline, name: str, text: str) -> None:
    """Refuse a text that a tokenizer of the pipeline would cut short, where the cut-off words would silently be lost.

    Raises:
        ValueError: more tokens than the tokenizer's length, start and end of text included.
    """
    for tokenizer in filter(None, (pipe.tokenizer, getattr(pipe, "tokenizer_2", None))):
        tokens, length = len(tokenizer(text, verbose=False).input_ids), tokenizer.model_max_length
        if tokens > length:
            raise ValueError(f"{name} must fit into {length} tokens; got {tokens}: {text[:60]!r}...; use fewer words")


def cut_texts(pipe: Pipeline, texts: Iterable[str]) -> dict[str, int]:
    """Texts with more tokens than a tokenizer of the pipeline takes, whose end never reaches the model -> tokens lost.

    The original model loses them as the erased one does, so such prompts are drawn; how many there are belongs in the
    record.
    """
    clips = (pipe.tokenizer, getattr(pipe, "tokenizer_2", None))
    tokenizers = [(t, t.model_max_length) for t in clips if t is not None]
    if is_flow(pipe):  # what CLIP does not read, T5 does
        tokenizers = [longest_tokenizer(pipe)]
    texts = list(dict.fromkeys(texts))
    lost: dict[str, int] = {}
    for tokenizer, most in tokenizers if texts else ():
        ids = tokenizer(texts, truncation=False, verbose=False).input_ids
        for text, tokens in zip(texts, ids, strict=True):
            if (extra := len(tokens) - most) > 0:
                lost[text] = max(extra, lost.get(text, 0))
    return lost


@torch.no_grad()
def encode(pipe: Pipeline, texts: Sequence[str], batch_size: int = 64, rows: int | None = None) -> torch.Tensor:
    """What the cross-attention gets for each text.

    Stable Diffusion 1.x/2.x: the text encoder's last hidden state after the final LayerNorm. SDXL: the penultimate
    hidden states of both encoders side by side (768 + 1280 = 2048), as ``pipe.encode_prompt`` does; the real encoding
    of ``""``, too, although SDXL itself is guided away from zeros.

    Args:
        rows: only the leading rows, at proportionally lower cost: the text encoders are causal, so these rows do not
            depend on those that follow. None: all.

    Returns:
        [n, tokens (or rows), width] in the text encoder's dtype, on its device.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("texts must not be empty; got no text to encode")
    made = halving(
        lambda part: encode_batch(pipe, part, rows).states, texts, batch_size, "texts", pipe.text_encoder.device
    )
    return torch.cat(list(made))


class Texts(dict[str, Encoding]):
    """Encodings of the texts in use, each made once and alone, so that no batch changes another's last digit."""

    def __init__(self, pipe: Pipeline) -> None:
        super().__init__()
        self.pipe = pipe

    def __missing__(self, text: str) -> Encoding:
        if len(self) >= (FLOW_TEXTS_KEPT if is_flow(self.pipe) else TEXTS_KEPT):
            del self[next(key for key in self if key)]  # the oldest, but never the empty text
        with torch.no_grad():
            self[text] = encode_batch(self.pipe, [text])
        return self[text]


def encode_batch(pipe: Pipeline, texts: Sequence[str], rows: int | None = None) -> Encoding:
    """All that the UNet or the transformer needs of some texts, in one pass of each text encoder."""
    if is_flow(pipe):
        return Encoding(*encode_flow(pipe, texts))
    if getattr(pipe, "text_encoder_2", None) is None:
        encoder = pipe.text_encoder
        tokens = _tokens(pipe.tokenizer, texts).to(device_of(pipe, encoder))
        ids, mask = tokens.input_ids[:, :rows], tokens.attention_mask[:, :rows]
        masked = getattr(encoder.config, "use_attention_mask", False)
        states = encoder(ids, attention_mask=mask if masked else None)[0]
        return Encoding(states, states.new_empty(len(texts), 0))
    first, second = (
        encoder(_tokens(tokenizer, texts).input_ids[:, :rows].to(device_of(pipe, encoder)), output_hidden_states=True)
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
    )
    return Encoding(torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1), second.text_embeds)


def token_table(pipe: Pipeline) -> torch.Tensor:
    """The text encoder's token embeddings [vocabulary, width], before positions are added; shared, not a copy.

    Raises:
        ValueError: SDXL, whose two text encoders have two tables.
    """
    _one_encoder(pipe)
    return pipe.text_encoder.get_input_embeddings().weight


def encode_embeddings(pipe: Pipeline, embeddings: torch.Tensor) -> torch.Tensor:
    """What the cross-attention gets for token embeddings that need not be those of any token.

    The text encoder's own forward pass (positions, causal mask, layers, final LayerNorm) with the output of its token
    table replaced: ``encode_embeddings(pipe, token_table(pipe)[tokenise(pipe, texts)])`` is ``encode(pipe, texts)``.
    Gradients flow back to ``embeddings``. Padding is attended to, as everywhere in Stable Diffusion 1.x and 2.x.

    Args:
        embeddings: [n, tokens, width] in the text encoder's dtype, on its device, without positions.

    Returns:
        [n, tokens, width].

    Raises:
        ValueError: SDXL, an encoder that masks its padding, or embeddings of another width.
    """
    _one_encoder(pipe)
    encoder = pipe.text_encoder
    width = encoder.get_input_embeddings().embedding_dim
    if embeddings.dim() != 3 or embeddings.shape[-1] != width:
        raise ValueError(f"embeddings must have shape [n, tokens, {width}]; got {list(embeddings.shape)}")
    if getattr(encoder.config, "use_attention_mask", False):
        raise ValueError("text encoder must attend to its padding (use_attention_mask false); got one that masks it")
    ids = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)  # only their shape is used
    handle = encoder.get_input_embeddings().register_forward_hook(lambda *_: embeddings)
    try:
        return encoder(ids)[0]
    finally:
        handle.remove()


def _one_encoder(pipe: Pipeline) -> None:
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise ValueError("model must have one text encoder (Stable Diffusion 1.x or 2.x); got SDXL's two")


def _tokens(tokenizer: Any, texts: Sequence[str]) -> Any:
    length = tokenizer.model_max_length
    return tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
