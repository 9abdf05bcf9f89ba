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
_FLUX_2 = dict(image_model="flux2", in_channels=128, out_channels=128, patch_size=1, vec_in_dim=None, mlp_ratio=3.0,
               axes_dim=[32, 32, 32, 32], theta=2000, qkv_bias=False, global_modulation=True, mlp_silu_act=True,
               ops_bias=False, txt_ids_dims=[3])
_HUNYUAN = dict(image_model="hunyuan_video", axes_dim=[16, 56, 56], mlp_ratio=4.0, theta=256, qkv_bias=True,
                meanflow=False, meanflow_sum=False, use_cond_type_embedding=False, vision_in_dim=None)
_WAN = dict(image_model="wan2.1", model_type="t2v", in_dim=16, out_dim=16, patch_size=(1, 2, 2), freq_dim=256)
_WAN_14B = dict(_WAN, dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)
_COSMOS_2 = dict(image_model="cosmos_predict2", max_img_h=240, max_img_w=240, max_frames=128, in_channels=16,
                 out_channels=16, patch_spatial=2, patch_temporal=1, concat_padding_mask=True,
                 crossattn_emb_channels=1024, pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=256,
                 model_channels=2048, num_blocks=28, num_heads=16)
_KANDINSKY = dict(image_model="kandinsky5", time_dim=512, axes_dims=(16, 24, 24))


def _sd3(depth: int, positions: int, **more) -> dict:
    text = {"in_features": 4096, "out_features": 64 * depth}
    return dict(in_channels=16, patch_size=2, out_channels=16, depth=depth, num_blocks=depth, input_size=None,
                adm_in_channels=2048, pos_embed_scaling_factor=None, pos_embed_max_size=positions,
                num_patches=positions**2, context_embedder_config={"target": "torch.nn.Linear", "params": text}, **more)


_ADM_256 = ADMConfig(model_channels=256, channel_mult=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention_levels=(3, 4, 5),
                     num_classes=1000, image_size=256)
# By the kind that the README's table lists them under. Those of few entries have the sizes of the host's own classes.
PUBLISHED: Mapping[str, dict | ADMConfig] = {
    "SD 1.5": dict(_SD, context_dim=768, use_linear_in_transformer=False),
    "SD 2.1": dict(_SD, context_dim=1024, use_linear_in_transformer=True),
    "SDXL": _SDXL,
    "SVD": dict(_SD, in_channels=8, num_classes="sequential", adm_in_channels=768, context_dim=1024, num_heads=-1,
                num_head_channels=64, use_linear_in_transformer=True, use_temporal_attention=True,
                use_temporal_resblock=True, video_kernel_size=[3, 1, 1], extra_ff_mix_layer=True,
                merge_strategy="learned_with_images"),
    "SD3 medium": _sd3(24, 192),
    "SD3.5 medium": _sd3(24, 384, qk_norm="rms", x_block_self_attn_layers=list(range(13))),
    "SD3.5 large": _sd3(38, 192, qk_norm="rms"),
    "Z-Image": dict(_NEXT_DIT, dim=3840, cap_feat_dim=2560, n_layers=30, n_heads=30, n_kv_heads=30,
                    axes_dims=[32, 48, 48], axes_lens=[1536, 512, 512], rope_theta=256.0, ffn_dim_multiplier=8 / 3,
                    z_image_modulation=True, time_scale=1000.0, pad_tokens_multiple=32),
    "Qwen-Image": dict(image_model="qwen_image", in_channels=64, num_layers=60),
    "Flux": _FLUX,
    "Flux 2 dev": dict(_FLUX_2, hidden_size=6144, num_heads=48, context_in_dim=15360, depth=8, depth_single_blocks=48,
                       guidance_embed=True),
    "Flux 2 Klein 4B": dict(_FLUX_2, hidden_size=3072, num_heads=24, context_in_dim=7680, depth=5,
                            depth_single_blocks=20, guidance_embed=False),
    "Flux 2 Klein 9B": dict(_FLUX_2, hidden_size=4096, num_heads=32, context_in_dim=12288, depth=8,
                            depth_single_blocks=24, guidance_embed=False),
    "Krea 2": dict(image_model="krea2"),
    "Chroma": {key: value for key, value in _FLUX.items() if key != "guidance_embed"} | dict(
        image_model="chroma", in_channels=64, out_channels=64, in_dim=64, out_dim=3072, hidden_dim=5120, n_layers=5,
        vec_in_dim=None),
    "LongCat-Image": dict(_FLUX, vec_in_dim=None, context_in_dim=3584, depth=10, depth_single_blocks=20,
                          guidance_embed=False, txt_ids_dims=[1, 2]),
    "Anima": dict(_COSMOS_2, image_model="anima"),
    "Ideogram 4": dict(image_model="ideogram4"),
    "HiDream-I1": dict(image_model="hidream", attention_head_dim=128, axes_dims_rope=[64, 32, 32],
                       caption_channels=[4096, 4096], max_resolution=[128, 128], in_channels=16, out_channels=16,
                       llama_layers=[*range(32), *[31] * 16], num_attention_heads=20, num_routed_experts=4,
                       num_activated_experts=2, num_layers=16, num_single_layers=32, patch_size=2, text_emb_dim=2048),
    "HiDream-O1": dict(image_model="hidream_o1"),
    "HunyuanImage 2.1": dict(_HUNYUAN, in_channels=64, out_channels=64, patch_size=[1, 1], axes_dim=[64, 64],
                             hidden_size=3584, num_heads=28, context_in_dim=3584, vec_in_dim=None, depth=20,
                             depth_single_blocks=40, guidance_embed=False, byt5=True),
    "OmniGen2": dict(image_model="omnigen2", axes_dim_rope=[40, 40, 40], axes_lens=[1024, 1664, 1664],
                     ffn_dim_multiplier=None, hidden_size=2520, in_channels=16, multiple_of=256, norm_eps=1e-05,
                     num_attention_heads=21, num_kv_heads=7, num_layers=32, num_refiner_layers=2, out_channels=None,
                     patch_size=2, text_feat_dim=2048, timestep_scale=1000.0),
    "Lumina 2": dict(_NEXT_DIT, dim=2304, cap_feat_dim=2304, n_layers=26, n_heads=24, n_kv_heads=8,
                     axes_dims=[32, 32, 32], axes_lens=[300, 512, 512], rope_theta=10000.0, ffn_dim_multiplier=4.0),
    "AuraFlow": dict(max_seq=9216, cond_seq_dim=2048, n_double_layers=4, n_layers=36),
    "Boogu": dict(image_model="boogu"),
    "Ernie-Image": dict(image_model="ernie"),
    "JoyImage": dict(image_model="joyimage"),
    "Lens": dict(image_model="lens"),
    "Mage-Flow": dict(image_model="mage_flow", in_channels=128, num_layers=12),
    "PixelDiT": dict(image_model="pixeldit_t2i"),
    "PixArt Sigma": dict(image_model="pixart_sigma", num_heads=16, patch_size=2, hidden_size=1152, in_channels=4,
                         depth=28, model_max_length=300, input_size=128, pe_interpolation=2, micro_condition=False),
    "HunyuanDiT": dict(image_model="hydit", depth=40, hidden_size=1408, mlp_ratio=4.3637),
    "Stable Cascade, stage C": dict(stable_cascade_stage="c", c_cond=2048),
    "Wan 2.1 1.3B": dict(_WAN, dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
    "Wan 2.1 14B": _WAN_14B,
    "Wan 2.2 14B": _WAN_14B,
    "Wan 2.2 5B": dict(_WAN, in_dim=48, out_dim=48, dim=3072, ffn_dim=14336, num_heads=24, num_layers=30),
    "LTX-Video 2B": dict(image_model="ltxv", num_layers=28, attention_head_dim=64, cross_attention_dim=2048),
    "LTX-Video 13B": dict(image_model="ltxv", num_layers=48, attention_head_dim=128, cross_attention_dim=4096),
    "LTX-2": dict(image_model="ltxav", num_layers=48, attention_head_dim=128, cross_attention_dim=4096),
    "HunyuanVideo": dict(_HUNYUAN, in_channels=16, out_channels=16, patch_size=[1, 2, 2], hidden_size=3072,
                         num_heads=24, context_in_dim=4096, vec_in_dim=768, depth=20, depth_single_blocks=40,
                         guidance_embed=True, byt5=False),
    "HunyuanVideo 1.5": dict(_HUNYUAN, in_channels=65, out_channels=32, patch_size=[1, 1, 1], hidden_size=2048,
                             num_heads=16, context_in_dim=3584, vec_in_dim=None, depth=54, depth_single_blocks=0,
                             guidance_embed=False, byt5=True, vision_in_dim=1152, meanflow_sum=True,
                             use_cond_type_embedding=True),
    "Mochi": dict(image_model="mochi_preview", depth=48, patch_size=2, num_heads=24, hidden_size_x=3072,
                  hidden_size_y=1536, mlp_ratio_x=4.0, mlp_ratio_y=4.0, learn_sigma=False, in_channels=12,
                  qk_norm=True, qkv_bias=False, out_bias=True, attn_drop=0.0, patch_embed_bias=True,
                  posenc_preserve_area=True, timestep_mlp_bias=True, attend_to_padding=False, timestep_scale=1000.0,
                  use_t5=True, t5_feat_dim=4096, t5_token_length=256, rope_theta=10000.0),
    "CogVideoX 2B": dict(image_model="cogvideox", num_attention_heads=30, attention_head_dim=64, time_embed_dim=512,
                         num_layers=30, in_channels=16, patch_size=2, text_embed_dim=4096),
    "CogVideoX 5B": dict(image_model="cogvideox", num_attention_heads=48, attention_head_dim=64, time_embed_dim=512,
                         num_layers=42, in_channels=16, patch_size=2, text_embed_dim=4096),
    "Cosmos Predict 2 2B": _COSMOS_2,
    "Kandinsky 5 Lite": dict(_KANDINSKY, model_dim=1792, ff_dim=7168, visual_embed_dim=132, num_text_blocks=2,
                             num_visual_blocks=32),
    "MiniMax H3": dict(image_model="minimax_h3"),
    "SeedVR2 3B": dict(image_model="seedvr2", vid_dim=2560, heads=20, num_layers=32, norm_eps=1e-5, mlp_type="swiglu",
                       vid_out_norm=True),
    "ACE-Step 1": dict(audio_model="ace", attention_head_dim=128, in_channels=8, out_channels=8, inner_dim=2560,
                       num_attention_heads=20, num_layers=24, patch_size=[16, 1], max_height=16, max_width=32768,
                       max_position=32768, mlp_ratio=2.5, rope_theta=1000000.0, speaker_embedding_dim=512,
                       text_embedding_dim=768, lyric_encoder_vocab_size=6693, lyric_hidden_size=1024,
                       ssl_encoder_depths=[8, 8], ssl_latent_dims=[1024, 768], ssl_names=["mert", "m-hubert"]),
    "Hunyuan3D 2": dict(image_model="hunyuan3d2", in_channels=64, context_in_dim=1536, hidden_size=1024, mlp_ratio=4.0,
                        num_heads=16, depth=16, depth_single_blocks=32, qkv_bias=True, guidance_embed=False),
    "Hunyuan3D 2.1": dict(image_model="hunyuan3d2_1", in_channels=64, context_dim=1024, hidden_size=2048, mlp_ratio=4.0,
                          num_heads=16, depth=21, qkv_bias=False, guidance_cond_proj_dim=None),
    "TripoSplat": dict(image_model="triposplat"),
    "ADM 256": _ADM_256,
}
