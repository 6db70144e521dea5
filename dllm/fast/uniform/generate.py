"""DiffusionGemma's own `generate`, with steps whose logits are never stored.

transformers' loop stays as it is: prompts, images, masks, caches, streamers and stopping. Of each step the decoder is
run up to the LM head, and :func:`dllm.fast.uniform.step.canvas_step` does the rest. What the loop carries from step to
step under the name of logits, [B, L, V], is here the signal that they would become, [B, L, H].
"""

from __future__ import annotations

import copyreg
import functools
import logging
import threading
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dllm.fast.sampling.inputs import row_seeds
from dllm.fast.uniform.checks import check_generate, is_static
from dllm.fast.uniform.model import DiffusionGemma
from dllm.fast.uniform.step import canvas_step, is_settled, next_canvas, noise, stability, temperature_of

_log = logging.getLogger("dllm.fast")
_logged: set[str] = set()


@dataclass
class _Call:
    """One call of `generate` that takes our steps.

    padding: int64 [B], columns of padding before each prompt.
    given: the caller has given the first canvas.
    steps: of each canvas, N.
    likeliest: int64 [B, L], of the step before; stable: int64 [B], for how many steps they have stayed.
    """

    parts: DiffusionGemma
    seeds: Tensor
    padding: Tensor
    given: bool
    steps: int = 0
    likeliest: Tensor | None = None
    stable: Tensor | None = None


class _Calls(threading.local):
    now: _Call | None = None


_calls = _Calls()


class FastCanvases:
    """Mixed into the class of a patched model, before its own class."""

    @torch.no_grad()
    def generate(self, input_ids: Tensor | None = None, *args: object, **arguments: object) -> object:
        """The `generate` of the model's own class: same arguments, same result; a bad call raises before it runs."""
        outer, _calls.now = _calls.now, None
        try:
            if isinstance(input_ids, Tensor):
                check_generate(DiffusionGemma(self), input_ids, arguments)
            if (why := _why_not(self, input_ids, args, arguments)) is None:
                _calls.now = self._call(input_ids, arguments)
            elif why not in _logged:
                _logged.add(why)
                _log.warning("generate runs transformers' own steps, because %s", why)
            return super().generate(input_ids, *args, **arguments)
        finally:
            _calls.now = outer

    def _call(self, input_ids: Tensor, arguments: dict[str, object]) -> _Call:
        mask = arguments.get("attention_mask")
        padding = input_ids.new_zeros(len(input_ids)) if mask is None else (mask == 0).sum(1)
        seeds, given = row_seeds(None, len(input_ids), input_ids.device), arguments.get("decoder_input_ids") is not None
        return _Call(DiffusionGemma(self), seeds, padding, given)

    def _denoising_step(self, **step: object) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        call = _calls.now
        if call is None:
            return super()._denoising_step(**step)
        if step["past_key_values"].is_compileable:  # generate cannot see it beforehand where the config asks for it
            _calls.now = None
            return super()._denoising_step(**step)
        return _step(call, **step)

    def __reduce_ex__(self, protocol: int) -> tuple:
        _, _, *state = super().__reduce_ex__(protocol)
        return copyreg._reconstructor, (_own_class(type(self)), object, None), *state


def patch_generate(model: nn.Module) -> bool:
    """Make the `generate` of a DiffusionGemma fast. False where it is so already.

    Raises:
        TypeError, ValueError: as :class:`dllm.fast.uniform.model.DiffusionGemma`.
    """
    inner = DiffusionGemma(model).model
    if isinstance(inner, FastCanvases):
        return False
    inner.__class__ = _fast_class(type(inner))
    return True


def unpatch_generate(model: nn.Module) -> None:
    """Undo :func:`patch_generate`."""
    for module in model.modules():
        if isinstance(module, FastCanvases):
            module.__class__ = _own_class(type(module))


@functools.cache
def _fast_class(kind: type) -> type:
    """The class of a model with our steps, under the same name, which transformers writes into configurations."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (FastCanvases, kind), names)


def _own_class(kind: type) -> type:
    return kind.__mro__[kind.__mro__.index(FastCanvases) + 1]


def _why_not(model: nn.Module, input_ids: object, args: tuple, arguments: dict[str, object]) -> str | None:
    """Why a call cannot take our steps; None if it can."""
    if not isinstance(input_ids, Tensor):
        return "input_ids are no tensor"
    if args:
        return "settings are given by position"
    if arguments.get("logits_processor"):
        return "a logits processor reads whole logits"
    if getattr(arguments.get("streamer"), "_takes_logits", False):
        return "the streamer takes logits"
    if arguments.get("self_conditioning_logits") is not None:
        return "self_conditioning_logits are given"
    if is_static(model, arguments):
        return "a static cache compiles transformers' steps"
    return None


def _step(
    call: _Call,
    *,
    current_canvas: Tensor,
    argmax_canvas: Tensor,
    decoder_position_ids: Tensor,
    self_conditioning_logits: Tensor | None,
    mask_mapping: dict[str, Tensor | None],
    past_key_values: object,
    finished_denoising: Tensor,
    cur_step: int,
    sampler: object,
    logits_processor: list,
    diffusion_stopping_criteria: object | None,
    **_: object,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of the canvases that are not finished; what is returned is as transformers' own step returns it."""
    parts, signal = call.parts, self_conditioning_logits
    own = decoder_position_ids.long() - call.padding[:, None]
    if signal is None:  # a canvas begins
        call.steps, call.likeliest = cur_step, torch.full_like(current_canvas, -1)
        call.stable = torch.zeros_like(finished_denoising, dtype=torch.int64)
        signal = parts.head.weight.new_zeros(*current_canvas.shape, parts.head.in_features)
        if not call.given:
            current_canvas = noise(call.seeds, own, torch.zeros_like(call.stable), parts.vocab_size)
        call.given = False
    with parts.conditioned(signal):
        hidden = parts.decoder(
            decoder_input_ids=current_canvas,
            past_key_values=past_key_values,
            decoder_attention_mask=mask_mapping,
            decoder_position_ids=decoder_position_ids,
        ).last_hidden_state
    going_on = (~finished_denoising).nonzero().flatten()
    seeds, step = call.seeds[going_on], call.steps - torch.full_like(going_on, cur_step)
    positions = own[going_on]
    schedule = [process for process in logits_processor if hasattr(process, "t_max")]
    temperature = torch.ones(len(going_on), device=hidden.device)
    if schedule:
        temperature = temperature_of(step, schedule[0].max_denoising_steps, schedule[0].t_min, schedule[0].t_max)
    found = canvas_step(
        hidden[going_on],
        parts.head,
        softcap=parts.softcap,
        temperature=temperature,
        seeds=seeds,
        positions=positions,
        step=step,
        entropy_bound=sampler.entropy_bound,
        embeds=cur_step > 1,
    )
    canvas = next_canvas(found, seeds, positions, step, parts.vocab_size)
    stable = stability(found, call.likeliest[going_on], call.stable[going_on])
    call.stable = call.stable.index_copy(0, going_on, stable)
    call.likeliest = call.likeliest.index_copy(0, going_on, found.argmax)
    over, criteria = torch.zeros_like(going_on, dtype=torch.bool), diffusion_stopping_criteria
    if criteria is not None:
        over = is_settled(found, stable, criteria.stability_threshold, criteria.confidence_threshold)
    if found.embedding is not None:
        signal = signal.index_copy(0, going_on, parts.embedding_of(found.embedding))
    return (
        current_canvas.index_copy(0, going_on, canvas),
        argmax_canvas.index_copy(0, going_on, found.argmax),
        signal,
        finished_denoising.index_copy(0, going_on, over),
    )
