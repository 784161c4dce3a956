"""The front end: how many placeholders stand for a picture, and what its cache entry is named by.

Scheduler, KV blocks, prefix cache, encoder cache and the count of prompt tokens all follow the placeholders, and these
are made before anything is encoded: so what is kept is a number that follows from the picture's size alone.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import EmbeddingItems
from vllm.multimodal.processing.processor import PromptUpdateDetails

from vtc.version import __version__

from .cpu_runner import complete_cpu_runner
from .families import Row
from .item_fields import HERE, OTHER, ItemFields, cut_run
from .settings import PREFIX, REQUEST, EngineSettings, RequestSettings

IMAGE = "image"
PROFILING = "vtc_profiling"  # in a dummy request's arguments: all tokens are kept
PROMPT, IDENTITY = "vtc_prompt", "vtc_identity"  # what the hash is made of beside the picture


def _others(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are none of ours."""
    return {name: value for name, value in kwargs.items() if not name.startswith(PREFIX)}


class PrunedProcessor:
    """A mixin in front of a family's processor; ``row`` says what is known of the family."""

    row: Row
    info: Any

    def __init__(self, info: Any, dummy_inputs: Any) -> None:
        self.settings = EngineSettings.read(getattr(info.get_hf_config(), "vtc", None))
        _leave_videos_alone(info.ctx)
        complete_cpu_runner()  # a runner makes a processor before it loads its model
        super().__init__(info, dummy_inputs)  # type: ignore[call-arg]

    # ------------------------------------------------------------------ one request

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """Memory is measured with whole pictures: the tower runs on all tokens, and a request may keep them all."""
        inputs = super().get_dummy_inputs(*args, **kwargs)  # type: ignore[misc]
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, PROFILING: True})

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Add what a request's settings are to its arguments, so that the hashes of its pictures carry them."""
        given = inputs.hf_processor_mm_kwargs
        profiling = bool(given.get(PROFILING))
        ours = {} if profiling else {n: v for n, v in given.items() if n.startswith(PREFIX)}
        request = self.settings.request(ours)
        if not inputs.mm_data_items.get_count(IMAGE, strict=False):
            return super().apply(replace(inputs, hf_processor_mm_kwargs=_others(given)), timing_ctx)  # type: ignore[misc]
        if not profiling:
            self._refuse_last(inputs.prompt)
        settings: dict[str, Any] = {**ours, IDENTITY: f"{__version__} {request.identity}"}
        if profiling:
            settings[PROFILING] = True
        reads_prompt = request.reads_text and request.question is None and not profiling
        if reads_prompt:
            settings[PROMPT] = list(inputs.prompt)
        inputs = replace(inputs, hf_processor_mm_kwargs={**_others(given), **settings})
        if reads_prompt:  # each prompt has entries of its own, and which place an item has in it must be known
            inputs.cache = None
        return super().apply(inputs, timing_ctx)  # type: ignore[misc]

    def _refuse_last(self, prompt: Sequence[int]) -> None:
        """Refuse a prompt that ends in a picture: the next token would be asked of a token that may be gone.

        Before anything is cached: the front end would take for sent what no worker has got.
        """
        if not self.row.wrapped and list(prompt[-1:]) == [self.info.get_hf_config().image_token_id]:
            raise ValueError("a prompt that ends in a picture can't be pruned: put text behind the picture")

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """A picture at another place of a prompt that its method reads is another entry."""
        hashes = super()._get_mm_hashes(inputs)  # type: ignore[misc]
        if PROMPT in inputs.hf_processor_mm_kwargs and IMAGE in hashes:
            hashes = {**hashes, IMAGE: [f"{h}-{i}" for i, h in enumerate(hashes[IMAGE])]}
        return hashes

    # ------------------------------------------------------------------ stock code sees its own arguments only

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._apply_hf_processor_main(mm_items, _others(hf_kwargs))  # type: ignore[misc]

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, Any]) -> Any:
        return super()._get_mm_fields_config(hf_inputs, _others(hf_processor_mm_kwargs))  # type: ignore[misc]

    def _get_mm_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any
    ) -> Any:
        """The stock replacements, with as many placeholders as are left; their pictures' fields are filled in."""
        given = hf_processor_mm_kwargs
        grouped = super()._get_mm_prompt_updates(mm_items, _others(given), out_mm_kwargs)  # type: ignore[misc]
        if not grouped.get(IMAGE) or not mm_items.get_count(IMAGE, strict=False):
            return grouped
        if isinstance(mm_items[IMAGE], EmbeddingItems):
            raise ValueError(
                "this model prunes the pictures that it encodes, and can't prune image embeddings of a request: send "
                "the picture, or prune the embeddings first and send them to a server without vtc"
            )
        profiling = bool(given.get(PROFILING))
        request = self.settings.request({name: given[name] for name in REQUEST if name in given})
        raw = mm_items[IMAGE].get_all_items_for_hash()
        pruned = []
        for i, updates in enumerate(grouped[IMAGE]):
            item = out_mm_kwargs[IMAGE][i]
            masks = [_placeholders(update.content) for update in updates]
            lengths = self.row.spans(sum(masks[0]), item)
            kept = lengths if profiling else request.kept(lengths)
            key = self._key(raw[i], given, i)
            text = None if profiling else self._text(request, given, updates[0], i)
            packed = [-1.0, 0.0, 0.0] if profiling else request.packed()
            _put(item, ItemFields(lengths, packed, key, text))
            pruned.append([_cut(u, mask, lengths, kept) for u, mask in zip(updates, masks, strict=True)])
        return {**grouped, IMAGE: pruned}

    def _key(self, picture: Any, given: Mapping[str, Any], place: int) -> bytes:
        """Name of a picture and all that its choice depends on."""
        algorithm = self.info.ctx.get_mm_config().mm_hasher_algorithm
        where = {"place": place} if PROMPT in given else {}
        made = MultiModalHasher.hash_kwargs(algorithm, image=picture, settings=dict(given), **where)
        return bytes.fromhex(made)

    def _text(self, request: RequestSettings, given: Mapping[str, Any], update: Any, place: int) -> list[int] | None:
        """The prompt's tokens around the picture at `place`, or the question that the request gives instead."""
        if not request.reads_text:
            return None
        if request.question is not None:
            tokenizer = self.info.get_tokenizer()
            return [HERE, *tokenizer.encode(request.question, add_special_tokens=False)]
        wrapped = [
            t for t, is_row in zip(update.content.full, _placeholders(update.content), strict=True) if not is_row
        ]
        first = next(i for i, is_row in enumerate(_placeholders(update.content)) if is_row)
        prompt, target, found, seen = given[PROMPT], list(update.target), [], 0
        at = 0
        while at < len(prompt):
            if prompt[at : at + len(target)] == target:
                found += [*wrapped[:first], HERE if seen == place else OTHER, *wrapped[first:]]
                at, seen = at + len(target), seen + 1
            else:
                found.append(prompt[at])
                at += 1
        return found


def _placeholders(content: Any) -> list[bool]:
    """Which tokens of a replacement stand for rows of features."""
    if content.is_embed is None:
        return [True] * len(content.full)
    return [bool(flag) for flag in content.is_embed(content.full)]


def _cut(update: Any, mask: Sequence[bool], lengths: Sequence[int], kept: Sequence[int]) -> Any:
    """A replacement with the placeholders that are left."""
    import torch

    places = cut_run(update.content.full, mask, lengths, kept)
    left = torch.tensor([mask[i] for i in places])
    full = [update.content.full[i] for i in places]
    whole = update.content.is_embed is None
    return replace(update, content=PromptUpdateDetails(full, None if whole else lambda tokens, left=left: left))


def _put(item: Any, ours: ItemFields) -> None:
    for name, tensor in ours.tensors().items():
        config = MultiModalFieldConfig.batched(IMAGE, keep_on_cpu=True)
        (item[name],) = config.build_elems(name, [tensor])


def _leave_videos_alone(ctx: Any) -> None:
    """Let a family's processor see that no video is pruned, though the switch for pruned positions is on."""
    plain = copy.copy(ctx.get_mm_config())
    plain.video_pruning_rate = None
    object.__setattr__(ctx, "get_mm_config", lambda: plain)
