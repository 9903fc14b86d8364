"""Translate a preset's options to those of the memory estimate: context, KV types, layers and devices. Pure.

The worker reads the same options when it loads the model; the context of both is computed by `context_shape`. Both must
get the same layers and KV types.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llama_corral.presets.context_shape import context_shape
from msgspec.structs import replace

from ..placement.device_split import NO_OFFLOAD, Offload
from .estimate import EVERY_LAYER, FootprintOptions

if TYPE_CHECKING:
    from llama_corral.presets.options.settings import Settings

    from .devices import Devices

NO_DEVICES = ("none",)


def footprint_options(settings: Settings, devices: Devices) -> FootprintOptions:
    shape = context_shape(settings)
    return FootprintOptions(
        n_ctx=shape.n_ctx,
        n_ctx_slot=shape.n_ctx_per_slot,
        n_slots=shape.n_slots,
        unified=shape.unified,
        n_ubatch=min(shape.n_ubatch, shape.n_batch),
        flash_attention=settings.context.flash_attn != "off",
        type_k=settings.context.cache_type_k,
        type_v=settings.context.cache_type_v,
        swa_full=settings.context.swa_full,
        n_expert_layers_on_host=EVERY_LAYER if settings.load.cpu_moe else settings.load.n_cpu_moe,
        offload=_offload(
            settings,
            _names(settings.load.device, devices),
            settings.load.n_gpu_layers,
            mode=settings.load.split_mode,
            has_overrides=bool(
                settings.load.override_tensor
                or settings.load.cpu_moe
                or settings.load.n_cpu_moe
                or settings.load.n_cpu_ffn
            ),
            devices=devices,
        ),
    )


def draft_footprint_options(settings: Settings, devices: Devices) -> FootprintOptions:
    """Return the draft model's options: context and split shares of the main model, the rest from its own options."""
    s = settings
    return replace(
        footprint_options(s, devices),
        type_k=s.draft_model.cache_type_k_draft,
        type_v=s.draft_model.cache_type_v_draft,
        n_expert_layers_on_host=EVERY_LAYER if s.draft_model.cpu_moe_draft else s.draft_model.n_cpu_moe_draft,
        offload=_offload(
            s,
            _names(s.draft_model.device_draft or s.load.device, devices),
            s.draft_model.n_gpu_layers_draft,
            mode="layer" if len(s.draft_model.device_draft) == 1 else s.load.split_mode,
            has_overrides=bool(
                s.draft_model.override_tensor_draft or s.draft_model.cpu_moe_draft or s.draft_model.n_cpu_moe_draft
            ),
            devices=devices,
        ),
    )


def projector_device(settings: Settings, devices: Devices) -> str:
    """Return the projector's device: its own, else the model's first, else the first of all; "": the host."""
    asked = (settings.media.mmproj_device,) if settings.media.mmproj_device else settings.load.device[:1]
    names = _names(asked, devices)
    return names[0] if names and settings.media.mmproj_offload else ""


def _offload(
    settings: Settings, names: tuple[str, ...], wanted: object, *, mode: str, has_overrides: bool, devices: Devices
) -> Offload:
    """Return how layers are offloaded. `wanted`: a number; `auto` and `all`: every layer. `mode`: the split mode."""
    if mode == "none":
        names = names[settings.load.main_gpu :][:1] if settings.load.main_gpu >= 0 else ()
    if not names:
        return NO_OFFLOAD
    shares = settings.load.tensor_split[: len(names)]
    return Offload(
        n_layers=int(str(wanted)) if str(wanted).isdigit() else EVERY_LAYER,
        devices=names,
        mode=mode,
        shares=shares if any(shares) else (),
        sizes=tuple(float(devices.total(name)) for name in names),
        with_kv=settings.context.kv_offload,
        pipelines=len(names) > 1 and mode == "layer" and settings.context.kv_offload and not has_overrides,
    )


def _names(asked: tuple[str, ...], devices: Devices) -> tuple[str, ...]:
    """Return the router's names of the requested devices, in the same order; all devices if none is requested."""
    if asked == NO_DEVICES or not devices.names:
        return ()
    return tuple(dict.fromkeys(devices.name_of(name) for name in asked)) if asked else devices.names
