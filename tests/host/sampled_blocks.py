"""Families of which only whole blocks can be altered, as MODELs that sample; see `sampled_families`."""

from __future__ import annotations

import re

import torch
from comfy.model_patcher import ModelPatcher

from .family_models import TEXT, Case
from .sampled_families import FLUX2, Sampled, node, noise


class SampledBlocks(Sampled):
    """One whose network is no case of `family_models`: there is no attention call to count."""

    @property
    def reference(self) -> Case:
        return Case(self.name, "", self.arguments, {}, "1", image=None)

    def build(self) -> ModelPatcher:
        """With the same rotation in every block, as published weights have it: SeedVR works it out in the first block
        that runs and uses it in all."""
        model = super().build()
        weights = model.model.diffusion_model.state_dict()
        for name, weight in weights.items():
            if ".rope." in name:
                weight.copy_(weights[re.sub(r"\d+", "0", name, count=1)])
        return model


def chunks(batch: int) -> dict:
    """MiniMax H3's video and sound, as EmptyMiniMaxH3LatentAV."""
    from comfy_extras.nodes_minimax_h3 import EmptyMiniMaxH3LatentAV

    return EmptyMiniMaxH3LatentAV.execute(64, 96, 5).result[0]


SAMPLED_BLOCKS = [
    SampledBlocks("Ernie-Image", "", "ErnieImage", FLUX2, {
        "hidden_size": 64, "num_attention_heads": 4, "num_layers": 3, "ffn_hidden_size": 96, "in_channels": 128,
        "out_channels": 128, "text_in_dim": 24, "rope_axes_dim": (4, 6, 6)}),
    SampledBlocks("ACE-Step 1", "", "ACEStep", node("ace.EmptyAceStepLatentAudio", seconds=1.5), {
        "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 4, "text_embedding_dim": 24,
        "lyric_encoder_vocab_size": 32, "ssl_latent_dims": [8, 8]},
        extras=lambda seed: {"conditioning_lyrics": torch.arange(seed, seed + 5)[None]}),
    SampledBlocks("ACE-Step 1.5", "", "ACEStep15", node("ace.EmptyAceStep15LatentAudio", seconds=1.0), {
        "hidden_size": 64, "text_hidden_dim": 24, "num_dit_layers": 3, "num_lyric_layers": 1, "num_timbre_layers": 1,
        "num_tokenizer_layers": 1, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "intermediate_size": 96,
        "fsq_dim": 64, "encoder_hidden_size": 64, "encoder_intermediate_size": 96, "encoder_num_heads": 4},
        extras=lambda seed: {"conditioning_lyrics": noise(seed + 7, 1, 5, 24)}),
    SampledBlocks("Hunyuan3D 2.1", "", "Hunyuan3Dv2_1", node("hunyuan3d.EmptyLatentHunyuan3Dv2", resolution=20), {
        "in_channels": 64, "hidden_size": 64, "context_dim": 24, "depth": 5, "num_heads": 4, "num_moe_layers": 1,
        "guidance_cond_proj_dim": 64, "num_experts": 2, "moe_top_k": 1}, batches=(1,)),
    SampledBlocks("MiniMax H3", "", "MiniMaxH3", chunks, {
        "hidden_size": 64, "num_layers": 3, "token_refiner_num_layers": 1, "num_attention_heads": 4,
        "attention_head_dim": 16, "ffn_hidden_size": 96, "text_dim": 24, "time_embed_hidden_size": 64,
        "time_embed_dim": 32, "rope_inv_freq_len": 2}, batches=(1,)),
    SampledBlocks("SeedVR", "", "SeedVR2", lambda batch: {"samples": torch.zeros(batch, 16, 2, 8, 12)}, {
        "norm_eps": 1e-5, "num_layers": 4, "mlp_type": "swiglu", "vid_dim": 64, "txt_in_dim": 24, "heads": 4,
        "head_dim": 16, "mm_layers": 2, "rope_dim": 12},
        extras=lambda seed: {"condition": noise(40, 1, 17, 2, 8, 12)}, text=(TEXT, 24)),
]
