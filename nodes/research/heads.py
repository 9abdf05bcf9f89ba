"""Finds the single attention heads worth perturbing (HeadHunter, arXiv 2506.10978)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from ...pag_core.checks import SettingError, check_choice, check_text, check_whole
from ...pag_core.drawing import PAPERS, Paper, Row, fit, from_image, grid, number, to_images
from ...pag_core.heads import Head, Round, Score, check_rounds, heads_of, hunt, report, text_of_heads, trials
from ...pag_core.perturbation import MAX_SEED
from ...pag_core.selection import Layer
from ...pag_core.settings import PAGOptions, PAGSettings
from ...pag_core.stages import select_stages
from .. import inputs
from ..host.messages import tell
from ..host.models.layers import model_layers
from ..host.research.kept import check_can_keep
from ..host.research.likeness import SCORES, likeness_of
from ..host.research.trials import Group, Sampling, Trials
from ..host.sampling.decoding import Decoder
from ..host.sampling.sampling import check_run

MOST_RUNS = 100_000
Cells = dict[frozenset[Head], list[Image.Image]]
"""{what is perturbed: small pictures, one for each prompt, seed and sample of the batch}."""
_log = logging.getLogger(__name__)


class PAGHeadSearch(io.ComfyNode):
    """Takes lists, so that several prompts can be connected: every input arrives as a list, most with one item."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PAGHeadSearch",
            display_name="PAG Head Search",
            category=inputs.RESEARCH,
            description="Perturbs each attention head of the given layers separately, for several prompts and seeds, "
                        "and ranks the heads by how well the images match a prompt or a reference, or shows them for "
                        "you to choose (HeadHunter). An interrupted search resumes where it stopped.",
            search_aliases=["headhunter", "attention heads", "head selection", "best heads", "softpag",
                            "注意力头", "어텐션 헤드"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                *inputs.sampling(
                    inputs.scale("pag_scale"),
                    io.String.Input(
                        "layers", default="auto",
                        tooltip="The layers whose heads are tried one by one, written as in the other PAG nodes; "
                                "m0:h0-3 tries only these four. PAG Layers lists the number of heads of each layer."),
                    io.Combo.Input(
                        "score", options=list(SCORES), default="eye",
                        tooltip="What the heads are ranked by. eye: how much each changes the image; you look at the "
                                "grid and choose. prompt: how well the images match the prompt, by clip_vision and "
                                "clip. reference: how similar they are to the reference, by clip_vision. pixels: how "
                                "little they differ from the reference, pixel by pixel."),
                    io.Int.Input(
                        "seeds", default=1, min=1, max=1000,
                        tooltip="How many seeds each head is tried with: seed, the one after it, and so on. A single "
                                "image is down to luck; 4 or more tell heads apart."),
                ),
                inputs.vae(False, "Decodes the images. The PAG ADM Loader provides one for its models."),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="For the scores prompt and reference: the vision model that compares the "
                                            "images, from Load CLIP Vision."),
                io.Clip.Input("clip", optional=True,
                              tooltip="For the score prompt: the CLIP text model that was trained with clip_vision, "
                                      "such as clip_l for CLIP ViT-L."),
                io.String.Input("prompt", default="", multiline=True, optional=True,
                                tooltip="For the score prompt: what the images should show or look like, in words. One "
                                        "text for all, or a list with one for each positive."),
                io.Image.Input("reference", optional=True,
                               tooltip="For the scores reference and pixels: what the images should look like. For "
                                       "pixels, one image for all, or one for each image of prompts, seeds and batch."),
                io.String.Input("chosen", default="", optional=True,
                                tooltip="Heads that are perturbed in every image, written as in layers: m0:h2, u1:h0. "
                                        "Every other head is tried together with them. Empty (neutral): none."),
                io.Int.Input("rounds", default=1, min=1, max=64, optional=True,
                             tooltip="The number of rounds. Each round tries every remaining head together with those "
                                     "chosen so far, and chooses more. 1 ranks single heads."),
                io.Int.Input("heads_per_round", default=1, min=1, max=64, optional=True,
                             tooltip="How many of the best heads each round chooses. 1 is the most exact; more need "
                                     "fewer rounds."),
                io.Int.Input("max_runs", default=500, min=1, max=MOST_RUNS, optional=True,
                             tooltip="The most runs a search may need. A longer search is rejected before it starts, "
                                     "with the number of runs it needs: about heads × prompts × seeds × rounds."),
                inputs.cell_size(128),
                inputs.paper(),
            ],
            outputs=[
                io.String.Output(display_name="ranking", tooltip="The heads of each round with their scores, best "
                                                                 "first."),
                io.Image.Output(display_name="grid", tooltip="A row per layer, a column per head; one grid for each "
                                                             "round, prompt, seed and image of the batch."),
                io.String.Output(display_name="layers", tooltip="The chosen heads, for the layers input of the other "
                                                                "PAG nodes. With the score eye: the heads in chosen, "
                                                                "or all heads if it is empty."),
            ],
        )

    @classmethod
    def execute(cls, positive: list, negative: list, prompt: Sequence[str] = ("",), **others: list) -> io.NodeOutput:
        return _search(positive, negative, list(prompt), **{name: only(name, values)
                                                            for name, values in others.items()})


def only(name: str, values: list):
    """The one value of an input."""
    if len(values) != 1:
        raise ValueError(f"{name} is a list of {len(values)}, but PAG Head Search takes one value. Only positive, "
                         f"negative and prompt may be lists.")
    return values[0]


def _search(positive: list, negative: list, prompts: list[str], *, model, seed: int, steps: int, cfg: float,
            pag_scale: float, layers: str, score: str, seeds: int, sampler_name: str, scheduler: str, latent_image,
            vae, denoise: float = 1.0, cfg_start_percent: float = 0.0, cfg_end_percent: float = 1.0,
            options: PAGOptions | None = None, clip_vision=None, clip=None, reference=None, chosen: str = "",
            rounds: int = 1, heads_per_round: int = 1, max_runs: int = 500, cell_size: int = 128,
            paper: str = "dark") -> io.NodeOutput:
    seeds, rounds, max_runs, heads_per_round = (check_whole(name, value, 1, high) for name, value, high in (
        ("seeds", seeds, 1000), ("rounds", rounds, 64), ("max_runs", max_runs, MOST_RUNS),
        ("heads_per_round", heads_per_round, 64)))
    cell_size = inputs.check_sheet(cell_size, paper)
    check_choice("score", score, SCORES)
    inputs.check_samples_pictures(denoise, latent_image, vae, model)
    options = PAGOptions() if options is None else options
    check_acts(PAGSettings(pag_scale, layers, options))
    if score == "eye" and (rounds, heads_per_round) != (1, 1):
        raise SettingError("With the score eye you choose the heads yourself, so rounds and heads_per_round must be 1. "
                           "Enter the heads that you like in chosen and run again for the next round.")
    seed, steps, denoise = check_run(seed, steps, sampler_name, scheduler, denoise)
    if not positive:
        raise ValueError("The list of positive conditionings is empty. Connect at least one.")
    for prompt in prompts:
        check_text("prompt", prompt)
    negative, prompts = (as_many(name, given, len(positive)) for name, given in (("negative", negative),
                                                                                 ("prompt", prompts)))
    plan = planned(model, layers, chosen, rounds, heads_per_round, positive, negative, seed, seeds)
    if plan.runs > max_runs:
        raise SettingError(f"This search needs {plan.runs} runs of {steps} steps ({plan.size}), but max_runs is "
                           f"{max_runs}. Use fewer layers, heads, seeds or rounds, or raise max_runs.")
    sampling = Sampling(model, latent_image, steps, cfg, pag_scale, options, sampler_name, scheduler, denoise,
                        cfg_start_percent, cfg_end_percent)
    made = Trials(sampling, plan.groups, Decoder(model, vae), plan.runs)
    for group in plan.groups[::seeds]:
        sampling.check(group, plan.first)
    batch = len(latent_image["samples"])
    likeness = likeness_of(score, clip_vision, clip, [prompts[group.prompt] for group in plan.groups], reference, batch)

    check_can_keep()
    _say(f"PAG Head Search: at most {plan.runs} runs of {steps} steps ({plan.size}).")
    made.sample_plain(layers)
    if there := made.there(plan.first):
        _say(f"PAG Head Search: {there} of the first round's {len(plan.first) * len(plan.groups)} runs were made by an "
             f"earlier search and are reused.")
    cells: Cells = {}
    done = list(hunt(plan.heads, plan.before, rounds, heads_per_round if likeness else 0,
                     scored(made, plan, likeness, cells, cell_size)))
    chosen_text = text_of_heads((*done[-1].chosen, *done[-1].taken) or plan.heads, plan.every)
    text = summary(done, score, plan.size, plan.every, chosen_text)
    names = [f"prompt {group.prompt + 1}, seed {group.seed}{f', image {image + 1}' if batch > 1 else ''}"
             for group in plan.groups for image in range(batch)]
    sheets = to_images([draw(one, plan.heads, cells, place, f"{f'round {turn}, ' if rounds > 1 else ''}{name}",
                             cell_size, PAPERS[paper])
                        for turn, one in enumerate(done, 1) for place, name in enumerate(names)])
    return io.NodeOutput(text, sheets, chosen_text, ui={**ui.PreviewImage(sheets).as_dict(), "text": (text,)})


@dataclass(frozen=True, eq=False)
class Plan:
    """What a search tries.

    Attributes:
        every: the model's layers.
        before, heads: the heads that are perturbed in every image, and those that are tried.
        first: what the first round perturbs, as texts of layers.
        groups: a prompt and a seed each.
        runs: how often it samples at most.
        size: heads, prompts, seeds and rounds, for people.
    """

    every: tuple[Layer, ...]
    before: tuple[Head, ...]
    heads: tuple[Head, ...]
    first: list[str]
    groups: list[Group]
    runs: int
    size: str


def planned(model, layers: str, chosen: str, rounds: int, heads_per_round: int, positive: list, negative: list,
            seed: int, seeds: int) -> Plan:
    """Raises SelectionError or SettingError if there is nothing to try, or not enough for the rounds."""
    found = model_layers(model)
    every = tuple(found.layers)

    def heads_in(name: str, text: str) -> tuple[Head, ...]:
        stage, *others = select_stages(text, every, found.auto)
        if others:
            raise SettingError(f"{name} is {text!r}, but a search perturbs each head during the whole run. Give one "
                               f"selection, without stages.")
        return heads_of(stage.chosen)

    before = heads_in("chosen", chosen) if check_text("chosen", chosen).strip() else ()
    heads = tuple(head for head in heads_in("layers", layers) if head not in before)
    if not heads:
        raise SettingError(f"chosen already contains every head of layers {layers!r}. Add more layers.")
    check_rounds(len(heads), rounds, heads_per_round)
    groups = [Group(positive[index], negative[index], index, (seed + offset) % (MAX_SEED + 1))
              for index in range(len(positive)) for offset in range(seeds)]
    size = ", ".join(f"{count} {thing}{'s' * (count > 1)}" for count, thing in (
        (len(heads), "head"), (len(positive), "prompt"), (seeds, "seed"), (rounds, "round")))
    return Plan(every, before, heads, [text_of_heads([*before, head], every) for head in heads], groups,
                len(groups) * (trials(len(heads), rounds, heads_per_round) + bool(before)), size)


def scored(made: Trials, plan: Plan, likeness: Callable[[int, Tensor], Tensor] | None, cells: Cells,
           cell_size: int) -> Score:
    """What scores a choice of heads, and leaves its pictures in `cells`; without a likeness by how much they differ
    from those that are asked for first."""
    base: list[Tensor] = []

    def score(tried: tuple[Head, ...]) -> list[float]:
        images = made.pictures(text_of_heads(tried, plan.every)) if tried else made.plain
        cells[frozenset(tried)] = [fit(from_image(image), cell_size) for group in images for image in group]
        base.extend([] if base else images)
        if likeness:
            return torch.cat([likeness(group, one) for group, one in enumerate(images)]).tolist()
        return torch.cat([(one - other).abs().flatten(1).mean(1) for one, other in zip(images, base, strict=True)]
                         ).tolist()

    return score


def check_acts(settings: PAGSettings) -> None:
    """Raise SettingError if perturbing single heads could make no difference."""
    if settings.is_off:
        raise SettingError("PAG is off (pag_scale or strength is 0), so every head would give the same image. Raise "
                           "pag_scale or strength.")
    if settings.options.kind.acts_on_block:
        raise SettingError(f"{settings.options.perturbation} acts on whole blocks, not on heads. Choose another "
                           f"perturbation in PAG Options, or compare blocks with PAG Grid.")


def as_many(name: str, values: list, count: int) -> list:
    """The values, one for each prompt."""
    if len(values) not in (1, count):
        raise ValueError(f"{name} is a list of {len(values)}, but there are {count} positive prompts. Give one for all "
                         f"of them, or one for each.")
    return values * count if len(values) == 1 else values


_MEANINGS = {
    "eye": "mean change per pixel, 0 to 1: the strongest first, not the best",
    "prompt": "similarity to the prompt (cosine of the CLIP embeddings)",
    "reference": "similarity to the reference (cosine of the embeddings)",
    "pixels": "negative root mean square difference from the reference, pixels from 0 to 1",
}


def summary(rounds: list[Round], score: str, size: str, every: tuple[Layer, ...], layers: str) -> str:
    lines = [f"{size}.", f"Score: {_MEANINGS[score]}."]
    if score != "eye":
        best = rounds[0].ranked[0]
        if best.gain(rounds[0].base)[0] <= 0:
            lines.append("No head scores higher than the image without perturbed heads.")
        if not rounds[-1].taken:
            lines.append(f"Round {len(rounds)} found no head that raises the score, so it is the last.")
        lines.append(f"layers: {layers}")
    return "\n".join([*lines, "", report(rounds, every)]) + "\n"


def draw(one: Round, heads: tuple[Head, ...], cells: Cells, place: int, corner: str, cell_size: int,
         paper: Paper) -> Image.Image:
    """One image for each head: a row per layer, a column per head, with the baseline on the left."""
    layers = list(dict.fromkeys(layer for layer, _ in heads))
    numbers = sorted({head for _, head in heads})
    ranks = {trial.head: (rank, trial.mean) for rank, trial in enumerate(one.ranked, 1)}
    none = cells[frozenset(one.chosen)][place]
    rows = []
    for layer in layers:
        shown: list[Image.Image | str] = [none]
        captions = [number(fmean(one.base))]
        for head in numbers:
            rank, mean = ranks.get((layer, head), (0, 0.0))
            shown.append(cells[frozenset((*one.chosen, (layer, head)))][place] if rank else
                         "chosen" if (layer, head) in one.chosen else "not tried")
            captions.append(f"{rank}.  {mean:.4f}" if rank else "")
        rows.append(Row(layer.name, "", shown, tuple(captions)))
    columns = [("without" if not one.chosen else "chosen", ""), *((f"h{head}", "") for head in numbers)]
    return grid(columns, rows, cell_size, corner, paper)


def _say(text: str) -> None:
    _log.info(text)
    tell(text, "info")
