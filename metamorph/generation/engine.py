"""Batched generation: prompts into a cache, then one token or one visual vector a step."""

from collections import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from metamorph.generation.cache import KeyValueCache
from metamorph.generation.sampling import GREEDY, Sampling, sample_requests
from metamorph.generation.sequence import Generation, Mode, Sequence, Step
from metamorph.model.unified import MetaMorph
from metamorph_kernels import decode_attention, interval_attention, key_intervals


@dataclass(frozen=True)
class Prompt:
    """One prompt with its image slots already expanded.

    Attributes:
        token_ids: L ids; those at visual positions are ignored but must be valid (pad).
        visual_positions: places of the features within the prompt, in their flattened order.
        features: [images, tokens, C] unit vectors, or None without images.
        bidirectional_spans: (start, end) of images that were trained to see themselves whole.
    """

    token_ids: abc.Sequence[int]
    visual_positions: abc.Sequence[int] = ()
    features: Tensor | None = None
    bidirectional_spans: abc.Sequence[tuple[int, int]] = ()


@torch.no_grad()
def generate(
    model: MetaMorph,
    prompts: abc.Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling | abc.Sequence[Sampling] = GREEDY,
    on_step: abc.Callable[[list[Step]], None] | None = None,
) -> list[Generation]:
    """Answer every prompt with text and images; sequences may be in different modes at any time.

    After `<image_start>`, exactly `tokens_per_image` steps each record
    normalize(vision_head(state)) and feed its projection back; text logits are not computed
    there, and `<image_end>` is then forced (MetaMorph, arXiv 2412.14164, with its early-stop and
    stuck-image faults closed). A text token and a visual vector each use one of `max_new_tokens`.

    Args:
        sampling: one for all prompts, or one for each. Every prompt draws from a generator of its
            own, a copy of its sampling's, so an answer depends on neither its place nor the rest
            of the batch; equal prompts get different answers from samplings of different seeds.
        on_step: called after each step with what every unfinished sequence emitted.

    Returns:
        One Generation a prompt, in order; its features are fp32 on the model's device.

    Raises:
        ValueError: no budget, a prompt whose parts do not fit together, or another number of
            samplings than of prompts.
        UserError: the model predicts NaN or infinity.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens: expected at least 1, got {max_new_tokens}")
    for number, prompt in enumerate(prompts):
        _check_prompt(model, number, prompt)
    given = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
    if len(given) != len(prompts):
        raise ValueError(
            f"sampling: expected one for each of {len(prompts)} prompts, got {len(given)}"
        )
    if not prompts:
        return []
    samplings = [own.for_one_request() for own in given]
    sequences = [
        Sequence(
            model.config,
            max_new_tokens,
            len(prompt.token_ids),
            opens_image=prompt.token_ids[-1] == model.config.image_start_id,
        )
        for prompt in prompts
    ]
    cache, states = prefill(model, prompts, max_new_tokens)
    while True:
        token_ids, image_sequences, vectors, emitted = _advance(model, sequences, states, samplings)
        if on_step is not None and emitted:
            on_step(emitted)
        if all(sequence.mode is Mode.FINISHED for sequence in sequences):
            return [sequence.result() for sequence in sequences]
        device = states.device
        embeddings = model.embed(
            torch.tensor(token_ids, device=device),
            vectors[:, None],
            torch.tensor(image_sequences, device=device, dtype=torch.int64),
        )
        states = decode(model, cache, embeddings)
        for sequence in sequences:
            sequence.token_forwards += sequence.mode is not Mode.FINISHED


def prefill(
    model: MetaMorph, prompts: abc.Sequence[Prompt], max_new_tokens: int
) -> tuple[KeyValueCache, Tensor]:
    """Run all prompts as the documents of one packed row and store their keys and values.

    Returns the cache, with room for `max_new_tokens` more, and the last state of each, [B, H].
    """
    weight = model.language.model.embed_tokens.weight
    device, dtype = weight.device, weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    lengths = [len(prompt.token_ids) for prompt in prompts]
    capacity = max(lengths) + max_new_tokens
    cache = KeyValueCache(model.config.language, len(prompts), capacity, device=device, dtype=dtype)
    cache.lengths.copy_(torch.tensor(lengths))

    token_ids, owners, slots, visual_positions, spans = [], [], [], [], []
    for number, prompt in enumerate(prompts):
        first = len(token_ids)
        visual_positions += [first + position for position in prompt.visual_positions]
        spans += [(first + start, first + end) for start, end in prompt.bidirectional_spans]
        token_ids += prompt.token_ids
        owners += [number] * lengths[number]
        slots += range(lengths[number])
    blocks = [prompt.features.to(device) for prompt in prompts if prompt.features is not None]
    empty = torch.zeros(0, model.config.tokens_per_image, model.config.visual_width, device=device)
    features = torch.cat([empty, *blocks])
    token_ids, owners, slots, visual_positions = (
        torch.tensor(values, device=device, dtype=torch.int64)
        for values in (token_ids, owners, slots, visual_positions)
    )
    intervals = key_intervals(lengths, spans, device=device)

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(layer_index, owners, slots, k, v)
        return interval_attention(q, k, v, intervals)

    embeddings = model.embed(token_ids, features, visual_positions)
    states = model.language(embeddings, slots, attention)  # [T, H]
    last = torch.tensor(lengths, device=device).cumsum(0) - 1
    return cache, states[last]


def decode(model: MetaMorph, cache: KeyValueCache, embeddings: Tensor) -> Tensor:
    """Feed one input vector a sequence, [B, H], behind what the cache holds; returns [B, H]."""
    owners = torch.arange(embeddings.shape[0], device=embeddings.device)
    slots = cache.lengths.long()  # the new token's slot is also its position
    lengths = cache.lengths + 1

    def attention(layer_index: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache.write(layer_index, owners, slots, k, v)
        return decode_attention(q, cache.keys[layer_index], cache.values[layer_index], lengths)

    states = model.language(embeddings, slots, attention)
    cache.advance()
    return states


def _advance(
    model: MetaMorph, sequences: list[Sequence], states: Tensor, samplings: list[Sampling]
) -> tuple[list[int], list[int], Tensor, list[Step]]:
    """Let every unfinished sequence emit once.

    Modes live on the host, so each head runs for its own sequences only. The host waits for the
    device where text is chosen, and where an image is complete, to see that it is finite. Finished
    sequences ride along on padding: the batch keeps its shape.

    Returns the next token id of each sequence, which ones are fed with vectors, those vectors, and
    the steps.
    """
    in_mode = {mode: [] for mode in Mode}
    for index, sequence in enumerate(sequences):
        in_mode[sequence.mode].append(index)
    text, image, closing = (in_mode[mode] for mode in (Mode.TEXT, Mode.IMAGE, Mode.CLOSING))
    next_ids = [model.config.pad_id] * len(sequences)
    vectors = states.new_zeros(0, model.config.visual_width)
    emitted = []
    if text:
        logits = model.language.head(states[text])  # [N, V]
        chosen = sample_requests(logits, [samplings[index] for index in text])
        for index, token_id in zip(text, chosen, strict=True):
            if sequences[index].accept_token(token_id):
                next_ids[index] = token_id
                emitted.append(Step(index, token_id, None))
    if image:
        vectors = model.predict_visual(states[image])  # [N, C]
        for index, vector in zip(image, vectors.unbind(), strict=True):
            emitted.append(Step(index, None, sequences[index].accept_visual(vector)))
    for index in closing:
        next_ids[index] = sequences[index].close_image()
        emitted.append(Step(index, next_ids[index], None))
    return next_ids, image, vectors, sorted(emitted, key=lambda step: step.sequence)


def _check_prompt(model: MetaMorph, number: int, prompt: Prompt) -> None:
    length = len(prompt.token_ids)
    if length == 0:
        raise ValueError(f"prompts[{number}].token_ids: expected at least one token, got none")
    images, *shape = [0] if prompt.features is None else prompt.features.shape
    tokens, width = model.config.tokens_per_image, model.config.visual_width
    if images and shape != [tokens, width]:
        raise ValueError(
            f"prompts[{number}].features: expected [images, {tokens}, {width}], "
            f"got {[images, *shape]}"
        )
    if len(prompt.visual_positions) != images * tokens:
        raise ValueError(
            f"prompts[{number}].visual_positions: expected {images * tokens}, {tokens} an image, "
            f"got {len(prompt.visual_positions)}"
        )
    outside = [position for position in prompt.visual_positions if not 0 <= position < length]
    if outside:
        raise ValueError(
            f"prompts[{number}].visual_positions: {outside[0]} is outside its {length} tokens"
        )
