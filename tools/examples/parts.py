"""Parts that many examples share: prompts, PAG, a sampler and the final image."""

from __future__ import annotations

from .graph import GREEN, NEGATIVE, POSITIVE, Graph, Output

NOTHING_PUBLISHED = ("No PAG settings have been published for this model. `auto` is the middle of the network, and the "
                     "scale is a starting point: not tuned.")


def prompts(graph: Graph, clip: Output, positive: str, negative: str | None = None) -> tuple[Output, Output]:
    """Both CONDITIONINGs; without a negative prompt, zeros stand for it, as in the host's templates at cfg 1."""
    graph.group("Prompt and size")
    text = graph.add("CLIPTextEncode", "Prompt", POSITIVE, clip=clip, text=positive)
    if negative is None:
        return text[0], graph.add("ConditioningZeroOut", "No negative prompt", conditioning=text[0])[0]
    return text[0], graph.add("CLIPTextEncode", "Negative prompt", NEGATIVE, clip=clip, text=negative)[0]


def with_pag(graph: Graph, model: Output, scale: float, layers: str = "auto", group: str = "PAG", **options) -> Output:
    """The model with PAG, in a group that the sampler follows in."""
    graph.group(group, GREEN)
    given = {"options": graph.add("PAGOptions", **options)[0]} if options else {}
    return graph.add("PAGModelPatch", model=model, scale=scale, layers=layers, **given)[0]


def sample(graph: Graph, model: Output, positive: Output, negative: Output, latent: Output, steps: int, cfg: float,
           sampler: str, scheduler: str, seed: int) -> Output:
    return graph.add("KSampler", model=model, positive=positive, negative=negative, latent_image=latent, seed=seed,
                     steps=steps, cfg=cfg, sampler_name=sampler, scheduler=scheduler)[0]


def decode_and_save(graph: Graph, samples: Output, vae: Output, prefix: str, group: bool = True) -> None:
    if group:
        graph.group("Image")
    graph.add("SaveImage", images=graph.add("VAEDecode", samples=samples, vae=vae)[0], filename_prefix=prefix)
