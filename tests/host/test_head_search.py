"""PAG Head Search: every picture is PAG KSampler's, and the ranking is that of separate runs."""

import itertools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.clip_vision
import comfy.model_management
import comfy.sd
import comfy.sd1_clip
import comfy.utils
import folder_paths
import pytest
import torch
import torch.nn.functional as F
from pag_pack.nodes.host.models.layers import model_layers
from pag_pack.nodes.host.research.kept import FOLDER, KeptPictures, eight_bits
from pag_pack.nodes.research.adm import SHIPPED, PAGADMClassLabel, PAGADMLoader
from pag_pack.nodes.research.heads import PAGHeadSearch
from pag_pack.pag_core.heads import heads_of, text_of_heads
from pag_pack.pag_core.selection import select
from pag_pack.pag_core.settings import PAGOptions

from . import models
from .runs import Run, counted, snapshot
from .test_inspection import vae
from .test_leaves_no_trace import at_call

RUN = Run(steps=2)
HEADS = [f"m0:h{head}" for head in range(4)]


@pytest.fixture(autouse=True)
def output(tmp_path):
    before = folder_paths.get_output_directory()
    folder_paths.set_output_directory(str(tmp_path))
    yield tmp_path
    folder_paths.set_output_directory(before)


@pytest.fixture(scope="module")
def decode():
    return vae()


def search(run: Run, model, decode, layers: str = "m0", **extra) -> tuple[str, torch.Tensor, str]:
    """(ranking, grids [n, H, W, 3], layers)."""
    given = {"model": model, "seed": run.seed, "steps": run.steps, "cfg": run.cfg, "pag_scale": 3.0, "layers": layers,
             "score": "eye", "seeds": 1, "sampler_name": run.sampler, "scheduler": run.scheduler,
             "latent_image": run.latent, "vae": decode, "denoise": run.denoise, "cell_size": 64, **extra}
    lists = {name: given.pop(name) for name in ("prompt",) if name in given}
    positive, negative = given.pop("positive", [run.positive]), given.pop("negative", [run.negative])
    return PAGHeadSearch.execute(positive, negative, **lists, **{name: [value] for name, value in given.items()}).result


def ranked(text: str, number: int = 1) -> list[tuple[str, float]]:
    """(head, score) of a round, the best first."""
    (part,) = (part for part in text.split("\n\n") if part.startswith(f"Round {number}"))
    rows = [line.split() for line in part.splitlines()[2:-1]]
    return [(row[1], float(row[2])) for row in rows]


def by_hand(run: Run, model, decode, layers: str, scale: float = 3.0, options: PAGOptions | None = None):
    """What PAG KSampler draws: [B, H, W, 3]."""
    return eight_bits(decode.decode(run.pag_ksampler(model, scale, layers, options)))


# --- the ranking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [RUN, replace(RUN, cfg=1.0, latent=models.empty_latent(2))], ids=["CFG", "batch"])
def test_the_ranking_is_that_of_separate_runs(run, decode):
    model = models.sd15()
    before = snapshot(model)
    reference = torch.rand(1, 64, 96, 3)
    text, grids, layers = search(run, model, decode, score="pixels", reference=reference)
    expected = {head: -(by_hand(run, model, decode, head) - reference).square().flatten(1).mean(1).sqrt().mean().item()
                for head in HEADS}
    found = ranked(text)
    assert [head for head, _ in found] == sorted(expected, key=expected.get, reverse=True)
    assert dict(found) == pytest.approx(expected, abs=1e-4)
    assert layers == found[0][0]
    assert f"layers: {layers}" in text
    assert len(grids) == len(run.latent["samples"])
    assert grids.std() > 0.05
    assert snapshot(model) == before


def test_prompts_and_seeds_are_averaged(decode):
    model, positives = models.sd15(), [models.conditioning(1), models.conditioning(7, tokens=14)]
    references = torch.rand(4, 64, 96, 3)
    text, grids, _ = search(RUN, model, decode, score="pixels", reference=references, seeds=2, positive=positives)
    runs = [replace(RUN, positive=positive, seed=seed) for positive in positives for seed in (5, 6)]
    for head, value in ranked(text):
        errors = [(by_hand(run, model, decode, head)[0] - wanted).square().mean().sqrt()
                  for run, wanted in zip(runs, references, strict=True)]
        assert value == pytest.approx(-torch.stack(errors).mean().item(), abs=1e-4)
    assert "4 heads, 2 prompts, 2 seeds, 1 round." in text
    assert "±" in text
    assert len(grids) == 4


def test_two_rounds_are_the_greedy_search(decode):
    model, options = models.sd15(), PAGOptions(strength=0.5)
    reference = by_hand(RUN, model, decode, "m0:h1+3", 6.0)
    text, grids, layers = search(RUN, model, decode, score="pixels", reference=reference, rounds=2, options=options)

    def value(layers):
        return -(by_hand(RUN, model, decode, layers, options=options) - reference).square().mean().sqrt().item()

    first = max(HEADS, key=value)
    found = model_layers(model)
    every = tuple(found.layers)
    (chosen,) = heads_of(select(first, every, found.auto))
    pairs = {head: text_of_heads([chosen, *heads_of(select(head, every, found.auto))], every) for head in HEADS
             if head != first}
    assert [head for head, _ in ranked(text, 2)] == sorted(pairs, key=lambda head: value(pairs[head]), reverse=True)
    best = max(pairs.values(), key=value)
    assert layers == (best if value(best) > value(first) else first)
    assert len(grids) == 2


def test_by_eye_the_heads_are_ranked_by_their_effect_and_chosen_is_handed_on(decode):
    model = models.sd15()
    text, _, layers = search(RUN, model, decode, "m0,d0:h0", chosen="m0:h2")
    assert layers == "m0:h2"
    base = by_hand(RUN, model, decode, "m0:h2")
    found = ranked(text)
    assert {head for head, _ in found} == {"m0:h0", "m0:h1", "m0:h3", "d0:h0"}
    together = {"d0:h0": "d0:h0,m0:h2", **{f"m0:h{head}": f"m0:h{text}" for head, text in (
        (0, "0+2"), (1, "1-2"), (3, "2-3"))}}
    expected = {head: (by_hand(RUN, model, decode, both) - base).abs().mean().item()
                for head, both in together.items()}
    assert dict(found) == pytest.approx(expected, abs=1e-4)
    assert [head for head, _ in found] == sorted(expected, key=expected.get, reverse=True)


def test_by_eye_with_nothing_chosen_all_heads_go_on(decode):
    assert search(RUN, models.sd15(), decode, "m0:h0-1")[2] == "m0:h0-1"


def test_transformers_and_videos(decode):
    run = replace(RUN, cfg=1.0, scheduler="simple", positive=models.conditioning(1),
                  latent={"samples": torch.zeros(1, 16, 8, 8)})
    text, _, _ = search(run, models.flux(), vae(16), "single.1:h0-1")
    assert [head for head, _ in ranked(text)]
    video = replace(run, latent={"samples": torch.zeros(1, 16, 2, 4, 6)})
    assert len(ranked(search(video, models.wan(), vae(16), "1")[0])) == 4


# --- what is kept --------------------------------------------------------------------------------------------------


def test_nothing_is_sampled_twice_but_the_picture_without_pag(decode, output):
    first, rows = counted(models.sd15())
    result = search(RUN, first, decode)
    assert len(rows) == 2 * 5
    assert len(list(output.rglob("*.png"))) == 4
    again, rows = counted(models.sd15())
    repeated = search(RUN, again, decode)
    assert rows == [2, 2]
    assert (repeated[0], repeated[2]) == (result[0], result[2])
    assert torch.equal(repeated[1], result[1])


def test_another_score_and_more_heads_use_what_is_there(decode):
    search(RUN, models.sd15(), decode, "m0:h0-1")
    model, rows = counted(models.sd15())
    search(RUN, model, decode, "m0", score="pixels", reference=torch.rand(1, 64, 96, 3))
    assert len(rows) == 2 * 3


@pytest.mark.parametrize("changed", [
    {"pag_scale": 2.0}, {"options": PAGOptions(strength=0.5)}, {"seed": 6}, {"positive": [models.conditioning(9)]},
    {"model": models.sd2()}, {"options": PAGOptions(scale_mask=models.half_mask())},
], ids=["scale", "strength", "seed", "prompt", "model", "mask"])
def test_nothing_is_taken_for_what_it_is_not(decode, changed):
    search(RUN, models.sd15(), decode, "m0:h0-1")
    model, rows = counted(changed.pop("model", models.sd15()))
    search(RUN, model, decode, "m0:h0-1", **changed)
    assert len(rows) == 2 * 3


def test_an_interrupted_search_goes_on(decode, output):
    model, rows = counted(models.sd15())
    interrupted = at_call(model, 7, comfy.model_management.interrupt_current_processing)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        search(RUN, interrupted, decode)
    kept = len(list(output.rglob("*.png")))
    assert 0 < kept < 4
    assert not comfy.model_management.processing_interrupted()
    model, rows = counted(models.sd15())
    text, _, _ = search(RUN, model, decode)
    assert len(rows) == 2 * (1 + 4 - kept)
    assert ranked(text) == ranked(search(RUN, models.sd15(), decode)[0])


def test_a_file_that_was_cut_short_is_sampled_again(decode, output):
    search(RUN, models.sd15(), decode)
    path = next(iter(sorted(output.rglob("*.png"))))
    path.write_bytes(path.read_bytes()[:40])
    model, rows = counted(models.sd15())
    search(RUN, model, decode)
    assert len(rows) == 2 * 2


def test_kept_pictures_come_back_bit_for_bit(output):
    plain, images = (eight_bits(torch.rand(2, 8, 12, 3)) for _ in range(2))
    kept = KeptPictures(plain, "settings")
    assert kept.find("u0.2:h3,m0:h1") is None
    kept.keep("u0.2:h3,m0:h1", images)
    assert torch.equal(KeptPictures(plain, "settings").find("u0.2:h3,m0:h1"), images)
    assert KeptPictures(plain, "others").find("u0.2:h3,m0:h1") is None
    kept.keep("m0:h1", images)
    assert kept.find("m0") is None
    long = ",".join(f"double.{block}:h{block}" for block in range(40))
    kept.keep(long, plain)
    assert torch.equal(kept.find(long), plain)
    assert all(len(path.name) < 100 and path.is_relative_to(output / FOLDER) for path in output.rglob("*.png"))


# --- before and while it runs ---------------------------------------------------------------------------------------


def test_the_number_of_runs_is_told_before_the_first(decode, monkeypatch):
    said = []
    model, rows = counted(models.sd15())
    monkeypatch.setattr("pag_pack.nodes.research.heads.tell", lambda text, kind: said.append((text, kind, len(rows))))
    search(RUN, model, decode, seeds=2)
    assert said == [("PAG Head Search: at most 10 runs of 2 steps (4 heads, 1 prompt, 2 seeds, 1 round).", "info", 0)]
    assert len(rows) == 2 * 10
    search(RUN, model, decode, seeds=2)
    assert said[2][0].startswith("PAG Head Search: 8 of the first round's 8 runs were made")


def test_progress_counts_through_all_runs(decode, monkeypatch):
    reports = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK",
                        lambda value, total, preview, node_id=None: reports.append((value, total)))
    monkeypatch.setattr(comfy.utils, "PROGRESS_THROTTLE_MIN_INTERVAL", 0.0)
    search(RUN, models.sd15(), decode)
    assert [report for report in reports if report[1] == 10] == [(value, 10) for value in range(1, 11)]


@pytest.mark.parametrize(("values", "message"), [
    ({"layers": "d9"}, "'d9'"),
    ({"chosen": "m0:h9"}, "'m0:h9'"),
    ({"layers": "60%: m0; 100%: u0"}, "layers is .* during the whole run. Give one selection, without stages"),
    ({"chosen": "m0"}, "chosen already contains every head of layers 'm0'"),
    ({"pag_scale": 0.0}, "PAG is off"),
    ({"options": PAGOptions(strength=0.0)}, "PAG is off"),
    ({"options": PAGOptions("skip_block")}, "skip_block acts on whole blocks"),
    ({"options": PAGOptions(row="negative"), "cfg": 1.0}, "at cfg 1 there is no negative"),
    ({"cfg": -1.0}, "cfg must be"),
    ({"rounds": 2}, "rounds and heads_per_round must be 1"),
    ({"rounds": 5, "score": "pixels", "reference": torch.zeros(1, 8, 8, 3)}, "5 rounds with heads_per_round 1"),
    ({"max_runs": 4}, r"needs 5 runs of 2 steps \(4 heads, 1 prompt, 1 seed, 1 round\), but max_runs is 4"),
    ({"seeds": 0}, "seeds must be a whole number"),
    ({"score": "nonsense"}, "score must be one of eye, prompt, reference, pixels"),
    ({"score": "pixels"}, "The reference is missing"),
    ({"score": "pixels", "reference": torch.zeros(3, 8, 8, 3)}, "reference has 3 images; .* the 1 images"),
    ({"score": "reference", "reference": torch.zeros(1, 8, 8, 3)}, "The CLIP vision model is missing"),
    ({"score": "prompt"}, "The CLIP vision model is missing"),
    ({"positive": [models.conditioning(1)] * 2, "negative": [models.conditioning(2)] * 3},
     "negative is a list of 3, but there are 2"),
    ({"positive": [models.conditioning(1), None]}, "The positive conditioning is missing"),
    ({"positive": []}, "positive conditionings is empty"),
    ({"options": PAGOptions(scale_mask=models.half_mask(3)), "latent_image": models.empty_latent(2)}, "mask"),
    ({"vae": None}, "The VAE is missing"),
    ({"vae": 7}, "vae is 7"),
    ({"denoise": 0.0}, "no step is sampled"),
    ({"latent_image": 3}, "latent_image is 3"),
    ({"model": 3}, "model is 3"),
], ids=lambda value: "" if isinstance(value, str) else "-".join(value))
def test_a_mistake_is_told_before_the_first_run(values, message, decode, output):
    model, rows = counted(models.sd15())
    with pytest.raises(ValueError, match=message):
        search(RUN, values.pop("model", model), values.pop("vae", decode), **values)
    assert rows == []
    assert not list(output.rglob("*.png"))


def test_an_output_folder_that_cannot_be_written_is_told_before_the_first_run(decode, output):
    (output / FOLDER).write_text("a file in its place")
    model, rows = counted(models.sd15())
    with pytest.raises(ValueError, match=r"pag_head_search is no folder that can be written to.*--output-directory"):
        search(RUN, model, decode)
    assert rows == []


def test_only_prompts_may_be_several(decode):
    with pytest.raises(ValueError, match="seed is a list of 2, but PAG Head Search takes one"):
        PAGHeadSearch.execute([RUN.positive], [RUN.negative], seed=[1, 2])


# --- CLIP ----------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


def clip_vision(width: int = 32):
    """The host's CLIP vision model, small and random."""
    config = {"hidden_act": "quick_gelu", "image_size": 28, "model_type": "clip_vision_model", "num_channels": 3,
              "patch_size": 14, "projection_dim": width, **SMALL}
    with torch.inference_mode(False), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"  # older hosts take a file only
        path.write_text(json.dumps(config), encoding="utf-8")
        made = comfy.clip_vision.ClipVisionModel(str(path))
        models.fill_with_noise(made.model)
    return made


def clip(projection: str = "random"):
    """The host's CLIP-L text model, small and random, as Load CLIP hands it on."""
    target = SimpleNamespace(params={}, clip=comfy.sd1_clip.SD1ClipModel, tokenizer=comfy.sd1_clip.SD1Tokenizer)
    with torch.inference_mode(False):
        made = comfy.sd.CLIP(target, model_options={"clip_l_model_config": SMALL, "dtype": torch.float32})
        models.fill_with_noise(made.cond_stage_model)
        weight = made.cond_stage_model.clip_l.transformer.text_projection.weight
        with torch.no_grad():
            if projection == "eye":
                weight.copy_(torch.eye(32))
            elif projection == "zeros":
                weight.zero_()
    return made


def test_the_score_prompt_is_clips(decode):
    model, vision, text_model = models.sd15(), clip_vision(), clip()
    text, _, layers = search(RUN, model, decode, score="prompt", clip_vision=vision, clip=text_model, prompt=["a dog"])
    inner = text_model.cond_stage_model.clip_l
    pooled = text_model.encode_from_tokens(text_model.tokenize("a dog"), return_pooled=True)[1]
    wanted = inner.transformer.text_projection(pooled).float()
    expected = {head: F.cosine_similarity(vision.encode_image(by_hand(RUN, model, decode, head))["image_embeds"],
                                          wanted).item() for head in HEADS}
    assert dict(ranked(text)) == pytest.approx(expected, abs=1e-4)
    assert layers == max(expected, key=expected.get)


def test_each_prompt_has_its_own_text(decode):
    given = dict(score="prompt", clip_vision=clip_vision(), clip=clip())
    positives = [models.conditioning(1), models.conditioning(7)]
    both = ranked(search(RUN, models.sd15(), decode, positive=positives, prompt=["a dog", "two cats"], **given)[0])
    alone = [dict(ranked(search(RUN, models.sd15(), decode, positive=[positive], prompt=[text], **given)[0]))
             for positive, text in zip(positives, ("a dog", "two cats"), strict=True)]
    assert dict(both) == pytest.approx({head: (alone[0][head] + alone[1][head]) / 2 for head in HEADS}, abs=2e-4)


def test_the_score_reference_is_the_mean_likeness_to_all_references(decode):
    model, vision, references = models.sd15(), clip_vision(), torch.rand(2, 40, 30, 3)
    text, _, _ = search(RUN, model, decode, score="reference", clip_vision=vision, reference=references)
    wanted = vision.encode_image(references)["image_embeds"]
    expected = {head: F.cosine_similarity(vision.encode_image(by_hand(RUN, model, decode, head))["image_embeds"],
                                          wanted).mean().item() for head in HEADS}
    assert dict(ranked(text)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("given", "message"), [
    (lambda: {"clip_vision": clip_vision(16), "clip": clip(), "prompt": ["a dog"]},
     "do not match: text embeddings have 32 dimensions, image embeddings 16"),
    (lambda: {"clip_vision": clip_vision(), "clip": clip("eye"), "prompt": ["a dog"]}, "lacks the projection"),
    (lambda: {"clip_vision": clip_vision(), "clip": clip("zeros"), "prompt": ["a dog"]}, "lacks the projection"),
    (lambda: {"clip_vision": clip_vision(), "clip": clip(), "prompt": [" "]}, "prompt is empty"),
    (lambda: {"clip_vision": clip_vision(), "prompt": ["a dog"]}, "The CLIP is missing"),
], ids=["widths", "identity", "zeros", "no prompt", "no CLIP"])
def test_clips_that_cannot_judge_are_refused_before_the_first_run(given, message, decode):
    model, rows = counted(models.sd15())
    with pytest.raises(ValueError, match=message):
        search(RUN, model, decode, score="prompt", **given())
    assert rows == []


# --- the shipped model ---------------------------------------------------------------------------------------------


def shipped(steps: int, size: int):
    """(the shipped model, its decoder, a run of so many steps, the heads of d0 and m0, every pair of them)."""
    model, decode = PAGADMLoader.execute(SHIPPED).result
    label = PAGADMClassLabel.execute(model, 1).result[0]
    run = Run(steps=steps, cfg=1.0, sampler="ddim", scheduler="normal", positive=label, negative=label, seed=1,
              latent={"samples": torch.zeros(1, 3, size, size)})
    found = model_layers(model)
    every = tuple(found.layers)
    heads = heads_of(select("d0,m0", every, found.auto))
    return model, decode, run, [text_of_heads([head], every) for head in heads], [
        text_of_heads(pair, every) for pair in itertools.combinations(heads, 2)]


@pytest.mark.slow
def test_on_the_shipped_model_the_search_finds_what_trying_everything_finds():
    """The reference is drawn with one pair of heads, so that the best pair is known. The search draws 9 heads and
    8 pairs, trying everything 36 pairs."""
    model, decode, run, heads, texts = shipped(steps=3, size=32)
    reference = by_hand(run, model, decode, texts[4])
    value = {text: -(by_hand(run, model, decode, text) - reference).square().mean().sqrt().item()
             for text in [*texts, *heads]}
    text, _, layers = search(run, model, decode, "d0,m0", score="pixels", reference=reference, rounds=2)
    singles = {head: value[head] for head, _ in ranked(text)}
    assert dict(ranked(text)) == pytest.approx(singles, abs=1e-4)
    assert [head for head, _ in ranked(text)] == sorted(singles, key=singles.get, reverse=True)
    assert layers == max(texts, key=value.get) == texts[4]


@pytest.mark.slow
def test_how_often_the_greedy_search_finds_what_trying_everything_finds(capsys):
    """On the shipped model, with references drawn with every pair of heads of a level in turn: by 9 heads and 8 pairs
    instead of all 36 pairs."""
    model, decode, run, _, pairs = shipped(steps=5, size=64)
    results = [search(run, model, decode, "d0,m0", score="pixels", reference=by_hand(run, model, decode, pair),
                      rounds=2)[2] for pair in pairs]  # what is drawn once is kept
    hits = sum(result == pair for result, pair in zip(results, pairs, strict=True))
    with capsys.disabled():
        print(f"\nthe search found {hits} of {len(pairs)} pairs")
    assert hits >= 0.9 * len(pairs)
