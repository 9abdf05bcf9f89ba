"""The published shapes of well-known models, as the host's own detection describes them.

For the editor's family chooser, where no file says which model it is. Keys that only matter for weights are left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from ....pag_core.adm import ADMConfig

_U_NET = dict(image_size=32, out_channels=4, use_spatial_transformer=True, legacy=False, in_channels=4,
              model_channels=320, use_temporal_resblock=False, use_temporal_attention=False)
_SD = dict(_U_NET, adm_in_channels=None, num_res_blocks=[2] * 4, channel_mult=[1, 2, 4, 4],
           transformer_depth=[1] * 6 + [0] * 2, transformer_depth_middle=1,
           transformer_depth_output=[1] * 9 + [0] * 3)
_SDXL = dict(_U_NET, num_classes="sequential", adm_in_channels=2816, context_dim=2048, use_linear_in_transformer=True,
             num_res_blocks=[2] * 3, channel_mult=[1, 2, 4], transformer_depth=[0, 0, 2, 2, 10, 10],
             transformer_depth_middle=10, transformer_depth_output=[0, 0, 0, 2, 2, 2, 10, 10, 10])
_FLUX = dict(image_model="flux", in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=4096,
             hidden_size=3072, mlp_ratio=4.0, num_heads=24, depth=19, depth_single_blocks=38, axes_dim=[16, 56, 56],
             theta=10000, qkv_bias=True, guidance_embed=True, txt_ids_dims=[])
_NEXT_DIT = dict(image_model="lumina2", patch_size=2, in_channels=16, qk_norm=True)
_WAN = dict(image_model="wan2.1", model_type="t2v", in_dim=16, out_dim=16, patch_size=(1, 2, 2), freq_dim=256)


def _sd3(depth: int, positions: int, **more) -> dict:
    text = {"in_features": 4096, "out_features": 64 * depth}
    return dict(in_channels=16, patch_size=2, out_channels=16, depth=depth, num_blocks=depth, input_size=None,
                adm_in_channels=2048, pos_embed_scaling_factor=None, pos_embed_max_size=positions,
                num_patches=positions**2, context_embedder_config={"target": "torch.nn.Linear", "params": text}, **more)


_ADM_256 = ADMConfig(model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(3, 4, 5),
                     num_classes=1000, image_size=256)
PUBLISHED: Mapping[str, dict | ADMConfig] = {
    "SD 1.5": dict(_SD, context_dim=768, use_linear_in_transformer=False),
    "SD 2.1": dict(_SD, context_dim=1024, use_linear_in_transformer=True),
    "SDXL": _SDXL,
    "SD3 medium": _sd3(24, 192),
    "SD3.5 medium": _sd3(24, 384, qk_norm="rms", x_block_self_attn_layers=list(range(13))),
    "SD3.5 large": _sd3(38, 192, qk_norm="rms"),
    "Flux": _FLUX,
    "Chroma": {key: value for key, value in _FLUX.items() if key != "guidance_embed"} | dict(
        image_model="chroma", in_channels=64, out_channels=64, in_dim=64, out_dim=3072, hidden_dim=5120, n_layers=5,
        vec_in_dim=None),
    "Qwen-Image": dict(image_model="qwen_image", in_channels=64, num_layers=60),
    "Z-Image": dict(_NEXT_DIT, dim=3840, cap_feat_dim=2560, n_layers=30, n_heads=30, n_kv_heads=30,
                    axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0, ffn_dim_multiplier=8 / 3,
                    z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32),
    "Lumina 2": dict(_NEXT_DIT, dim=2304, cap_feat_dim=2304, n_layers=26, n_heads=24, n_kv_heads=8,
                     axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=4.0),
    "AuraFlow": dict(max_seq=9216, cond_seq_dim=2048, n_double_layers=4, n_layers=36),
    "PixArt Sigma": dict(image_model="pixart_sigma", num_heads=16, patch_size=2, hidden_size=1152, in_channels=4,
                         depth=28, model_max_length=300, input_size=128, pe_interpolation=2, micro_condition=False),
    "HunyuanDiT": dict(image_model="hydit", depth=40, hidden_size=1408, mlp_ratio=4.3637),
    "Wan 2.1 1.3B": dict(_WAN, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "Wan 2.1 14B": dict(_WAN, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40),
    "ADM 256": _ADM_256,
}
