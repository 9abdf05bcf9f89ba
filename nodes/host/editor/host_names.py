"""ComfyUI's model classes as their makers write them."""

from __future__ import annotations

import re

_NAMES = {
    "SD15": "SD 1.5", "SD20": "SD 2.x", "SD21UnclipL": "SD 2.1 unCLIP L", "SD21UnclipH": "SD 2.1 unCLIP H",
    "SDXLRefiner": "SDXL refiner", "SSD1B": "SSD-1B", "Segmind_Vega": "Segmind Vega", "SVD_img2vid": "SVD",
    "SV3D_u": "SV3D u", "SV3D_p": "SV3D p", "Stable_Zero123": "Stable Zero123", "SD_X4Upscaler": "SD x4 upscaler",
    "Stable_Cascade_C": "Stable Cascade, stage C", "Stable_Cascade_B": "Stable Cascade, stage B",
    "SD15_instructpix2pix": "InstructPix2Pix (SD 1.5)", "SDXL_instructpix2pix": "InstructPix2Pix (SDXL)",
    "LotusD": "Lotus D", "SD3": "SD3 / SD3.5", "StableAudio": "Stable Audio", "StableAudio3": "Stable Audio 3",
    "PixArtAlpha": "PixArt Alpha", "PixArtSigma": "PixArt Sigma", "HunyuanDiT1": "HunyuanDiT 1.0",
    "FluxInpaint": "Flux Fill", "FluxSchnell": "Flux schnell", "Flux2": "Flux 2", "GenmoMochi": "Mochi",
    "LTXV": "LTX-Video", "LTXAV": "LTX-2", "HunyuanVideoI2V": "HunyuanVideo I2V",
    "HunyuanVideoSkyreelsI2V": "SkyReels I2V", "CosmosT2V": "Cosmos 1 T2V", "CosmosI2V": "Cosmos 1 I2V",
    "CosmosT2IPredict2": "Cosmos Predict 2 T2I", "CosmosI2VPredict2": "Cosmos Predict 2 I2V", "Lumina2": "Lumina 2",
    "ZImage": "Z-Image", "ZImagePixelSpace": "Z-Image, pixel space", "PixelDiTT2I": "PixelDiT",
    "WAN21_CausalAR_T2V": "Wan 2.1 T2V, causal", "WAN21_FunControl2V": "Wan 2.1 Fun Control",
    "WAN21_Camera": "Wan 2.1 Fun Camera", "WAN22_Camera": "Wan 2.2 Fun Camera", "WAN21_Vace": "Wan 2.1 VACE",
    "WAN22_T2V": "Wan 2.2 TI2V 5B", "WAN22_WanDancer": "WanDancer", "Hunyuan3Dv2": "Hunyuan3D 2",
    "Hunyuan3Dv2_1": "Hunyuan3D 2.1", "Hunyuan3Dv2mini": "Hunyuan3D 2 mini", "HiDream": "HiDream-I1",
    "HiDreamO1": "HiDream-O1", "ChromaRadiance": "Chroma Radiance", "ACEStep": "ACE-Step", "ACEStep15": "ACE-Step 1.5",
    "Omnigen2": "OmniGen2", "Ideogram4": "Ideogram 4", "Krea2": "Krea 2", "MageFlow": "Mage-Flow",
    "QwenImage": "Qwen-Image", "HunyuanImage21": "HunyuanImage 2.1",
    "HunyuanImage21Refiner": "HunyuanImage 2.1 refiner",
    "HunyuanVideo15": "HunyuanVideo 1.5", "HunyuanVideo15_SR_Distilled": "HunyuanVideo 1.5 SR",
    "Kandinsky5": "Kandinsky 5", "Kandinsky5Image": "Kandinsky 5 Image", "LongCatImage": "LongCat-Image",
    "ErnieImage": "Ernie-Image", "SeedVR2": "SeedVR2", "MiniMaxH3": "MiniMax H3",
}
_WAN = re.compile(r"WAN(\d)(\d)_(\w+)")


def readable(host_class: str) -> str:
    """The name of one of the classes of `comfy.supported_models`; of one that came later, its words."""
    if host_class in _NAMES:
        return _NAMES[host_class]
    if match := _WAN.fullmatch(host_class):
        return f"Wan {match[1]}.{match[2]} {match[3].replace('_', ' ')}"
    return re.sub(r"(?<=[a-z])(?=[A-Z])|_", " ", host_class)
