"""The experiments as data: which configurations a table compares, and the paper's claims about them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .config import STEPS, Config, pag

HEADS = {"d0": 4, "d1": 5, "m0": 5, "u0": 5, "u1": 5, "u2": 4, "u3": 4}  # of the shipped model's layers
SINGLE_LAYERS = tuple(HEADS)
COMBINATIONS = ("d1,m0", "m0,u0", "d0-1,m0", "d1,m0,u0", "all")
SHOWN = "u1"  # what `auto` is on the shipped file: it draws the clearest pictures, though less diverse ones
LAYER_SCALE = 1.0  # at which layers are compared, as the paper compares them at one scale
SCALES = (0.25, 0.5, 1.0, 2.0)
CFG_SCALES = (1.5, 2.0, 3.0, 4.0)
SAG_SCALES = (0.25, 0.5, 1.0)
SAG_SIGMA = 2.0  # the host node's default; its kernel spans 9 pixels


@dataclass(frozen=True)
class Found:
    """The settings that the search found best; the defaults are those of the shipped model, for runs without it.

    Attributes:
        layers: PAG's.
        scale, conditional_scale: PAG's alone.
        cfg: CFG's alone.
        both: (cfg, PAG's scale) together.
        sag: SAG's.
    """

    layers: str = "m0"
    scale: float = 1.0
    conditional_scale: float = 1.0
    cfg: float = 2.0
    both: tuple[float, float] = (2.0, 1.0)
    sag: float = 0.5


@dataclass(frozen=True)
class Row:
    name: str
    config: Config


@dataclass(frozen=True)
class Check:
    """A claim: `metric` of row `better` is lower (`higher` False) or higher than that of row `worse`.

    `no_worse`: the claim is only that it is not worse.
    """

    claim: str
    better: str
    worse: str
    metric: str = "fd"
    higher: bool = False
    no_worse: bool = False


@dataclass(frozen=True)
class Table:
    """One experiment.

    Attributes:
        key: what --only calls it.
        source: what it repeats of the paper; empty where it goes beyond.
        rows: what is compared.
        checks: what the paper says of them, or what we would like to know.
        share: of the sample count.
        as_line: whether the rows are points of one curve, for the plot.
        matched: whether all rows get the real pictures' brightness and contrast before they are judged.
    """

    key: str
    title: str
    source: str
    rows: tuple[Row, ...]
    checks: tuple[Check, ...] = ()
    share: float = 1.0
    as_line: bool = False
    matched: bool = False


def layer_search() -> list[Row]:
    """On held-out seeds: one scale, every layer and some sets of them (PAG Table 10, Fig. 38 to 40)."""
    return [Row(layers, pag(LAYER_SCALE, layers)) for layers in (*SINGLE_LAYERS, *COMBINATIONS)]


Choices = dict[str, list[tuple[object, Config]]]
"""{field of Found: [(value, configuration)]}, of which the search takes the best."""


def pag_scale_search(layers: Iterable[str]) -> Choices:
    """PAG alone, over the best few layer selections; the value is (layers, scale)."""
    return {"scale": [((name, s), pag(s, name)) for name in layers for s in SCALES]}


def other_scale_search(layers: str) -> Choices:
    """Everything else, with the best layers."""
    return {
        "sag": [(s, Config(sag=s, sag_sigma=SAG_SIGMA)) for s in SAG_SCALES],
        "cfg": [(cfg, Config(True, cfg=cfg)) for cfg in CFG_SCALES],
        "conditional_scale": [(s, pag(s, layers, True)) for s in SCALES],
        "both": [((cfg, s), pag(s, layers, True).but(cfg=cfg)) for cfg in CFG_SCALES[:2] for s in SCALES[:3]],
    }


def search_tables(found: Found) -> list[Table]:
    """The search's own, on the held-out samples."""
    return [_layer_table(), _scale_table(found)]


def _layer_table() -> Table:
    """All layers at one scale."""
    rows = (Row("no guidance", Config()), *layer_search())
    outer = (SINGLE_LAYERS[0], SINGLE_LAYERS[-1])
    return Table("layers", f"Which layers to perturb, at s {LAYER_SCALE:g}", "PAG Table 10, Fig. 38 to 40", rows, (
        *(Check(f"the middle block beats the outermost layer {layer}", "m0", layer) for layer in outer),
        *(Check(f"{layers} beats the middle block alone", layers, "m0") for layers in COMBINATIONS),
    ))


def _scale_table(found: Found) -> Table:
    """PAG's scales around the one found, without and with a label (PAG Fig. 12)."""
    rows, checks = [], []
    for name, label, best in (("", False, found.scale), ("label: ", True, found.conditional_scale)):
        rows += [Row(f"{name}s {s:g}", pag(s, found.layers, label)) for s in (0.0, *SCALES)]
        checks += [Check(f"{name}s {best:g} beats s {s:g}", f"{name}s {best:g}", f"{name}s {s:g}")
                   for s in (0.0, *SCALES) if s != best]
    return Table("scales", f"PAG's scale on {found.layers}, on held-out samples", "PAG Fig. 12", tuple(rows),
                 tuple(checks))


def tables(found: Found, share: float = 0.5) -> list[Table]:
    """All but the search's own; `share` is what a perturbed pass of `found.layers` costs, of a whole one."""
    plain, plain_label = Config(), Config(True)
    guided = pag(found.scale, found.layers)
    cfg = Config(True, cfg=found.cfg)
    both = pag(found.both[1], found.layers, True).but(cfg=found.both[0])
    return [
        Table("table1", "No guidance, SAG, PAG, CFG, CFG + PAG", "PAG Table 1 and Table 2", (
            Row("none", plain),
            Row("SAG", Config(sag=found.sag, sag_sigma=SAG_SIGMA)),
            Row("PAG", guided),
            Row("label: none", plain_label),
            Row("label: SAG", Config(True, sag=found.sag, sag_sigma=SAG_SIGMA)),
            Row("label: PAG", pag(found.conditional_scale, found.layers, True)),
            Row("label: CFG", cfg),
            Row("label: CFG + PAG", both),
        ), (
            Check("PAG beats no guidance, without a label", "PAG", "none"),
            Check("PAG beats SAG, without a label", "PAG", "SAG"),
            Check("PAG beats no guidance, with a label", "label: PAG", "label: none"),
            Check("PAG beats SAG, with a label", "label: PAG", "label: SAG"),
            Check("CFG + PAG beats CFG", "label: CFG + PAG", "label: CFG"),
            Check("PAG raises precision", "PAG", "none", "precision", higher=True),
            Check("PAG raises the score", "PAG", "none", "score", higher=True),
            Check("PAG lowers recall", "none", "PAG", "recall", higher=True),
        )),
        _scales(found), _shown(), _perturbations(guided), _diversity(found), _cfg_early(found, both, share),
        _beyond(guided), _single_heads(found), _high_scale(found), _scales_at_equal_tones(found), _weak_selves(guided),
        _negative_row(cfg, found), _rules(guided, found),
    ]


def _scales(found: Found) -> Table:
    rows = tuple(Row(f"s {s}", pag(s, found.layers)) for s in range(8))
    return Table("fig12", "PAG's scale", "PAG Fig. 12", rows, (
        Check("a small scale beats none", "s 1", "s 0"),
        Check("a small scale beats a large one", "s 1", "s 7"),
        Check("the score is best at a higher scale than the distance", "s 2", "s 1", "score", higher=True),
    ), share=0.5, as_line=True)


def _shown() -> Table:
    """The layers of the README's picture and the example workflows, which use CFG + PAG at scale 2, not 1."""
    rows = (*(Row(f"s {s:g}", pag(s, SHOWN)) for s in (0, 0.5, 1, 2, 4)),
            *(Row(f"label: s {s:g}", pag(s, SHOWN, True)) for s in (0, 1, 2)),
            Row("label: CFG", Config(True, cfg=3.0)), Row("label: CFG + PAG", pag(1.0, SHOWN, True).but(cfg=3.0)))
    return Table("shown", f"Layer with the clearest drawings: {SHOWN}", "PAG Fig. 12", rows, (
        Check("PAG raises precision", "s 2", "s 0", "precision", higher=True),
        Check("PAG raises the score", "s 2", "s 0", "score", higher=True),
        Check("PAG lowers recall", "s 0", "s 2", "recall", higher=True),
        Check("PAG lowers the Fréchet distance", "s 2", "s 0"),
        Check("with a label, PAG raises precision", "label: s 2", "label: s 0", "precision", higher=True),
        Check("with a label, PAG makes it easier to recognize", "label: s 2", "label: s 0", "accuracy", higher=True),
        Check("CFG + PAG raises precision over CFG", "label: CFG + PAG", "label: CFG", "precision", higher=True),
    ), share=0.5)


def _scales_at_equal_tones(found: Found) -> Table:
    """Whether the model's wrong brightness is why large scales and recall go another way here than in the paper."""
    rows = _scales(found).rows
    return Table("tones", "PAG's scale, with every row's brightness and contrast matched to the real images", "",
                 rows, (
        Check("a small scale beats none", "s 1", "s 0"),
        Check("a small scale beats a large one", "s 1", "s 7"),
        Check("PAG raises precision", "s 2", "s 0", "precision", higher=True),
        Check("PAG lowers recall", "s 0", "s 2", "recall", higher=True),
    ), share=0.5, as_line=True, matched=True)


def _perturbations(guided: Config) -> Table:
    kinds = ("random_mask", "random_off_diagonal_mask", "noise", "map_blur")
    rows = (Row("no guidance", Config()), Row("identity", guided),
            *(Row(kind, guided.but(options={"perturbation": kind})) for kind in kinds))
    checks = tuple(Check(f"identity beats {kind}", "identity", kind) for kind in kinds)
    return Table("table9", "Replacements of the attention map", "PAG Table 9", rows, checks, share=0.5)


def _diversity(found: Found) -> Table:
    """At scales that draw clearly labelled pictures with either, as the paper does: CFG 7.5, PAG 4.5."""
    return Table("table3", "Diversity within a label", "PAG Table 3", (
        Row("none", Config(True)),
        Row("CFG", Config(True, cfg=7.5)),
        Row("PAG", pag(4.5, found.layers, True)),
    ), (
        Check("PAG keeps more diversity than CFG", "PAG", "CFG", "label_diversity", higher=True),
        Check("PAG's score within a label is higher than CFG's", "PAG", "CFG", "label_score", higher=True),
    ), share=0.5)


def _cfg_early(found: Found, both: Config, share: float) -> Table:
    ends = (0.2, 0.4, 0.6, 0.8)
    alone = Config(True, cfg=found.cfg)
    # PAG acts from 40 % on, or later where it costs so much that the whole would cost more than CFG in every step.
    start = math.ceil(max(0.4, 1 - 0.4 / share) * STEPS) / STEPS
    late = both.but(options={"start_percent": start})
    schedule, full = f"CFG to 60%, PAG from {start:.0%}", "CFG + PAG"
    rows = [Row("no guidance", Config(True))]
    rows += [Row(f"CFG to {end:.0%}", alone.but(cfg_end=end)) for end in ends]
    rows += [Row("CFG", alone), Row(schedule, late.but(cfg_end=0.6)), Row(f"CFG, PAG from {start:.0%}", late),
             Row("CFG to 60% + PAG", both.but(cfg_end=0.6)), Row(full, both)]
    return Table("fig44", "CFG early, PAG late", "PAG Fig. 44, App. E.2", tuple(rows), (
        Check("CFG to 60% is no worse than CFG", "CFG to 60%", "CFG", no_worse=True),
        Check(f"{schedule} costs no more than CFG", schedule, "CFG", "flops", no_worse=True),
        Check(f"{schedule} is no worse than full CFG + PAG", schedule, full, no_worse=True),
        Check(f"{schedule} beats CFG", schedule, "CFG"),
        Check(f"{schedule} beats CFG to 60%", schedule, "CFG to 60%"),
    ), share=0.5)


def _beyond(guided: Config) -> Table:
    def row(name: str, **options) -> Row:
        return Row(name, guided.but(options=options))

    rows = (row("PAG"), row("strength 0.25", strength=0.25), row("strength 0.5", strength=0.5),
            row("SEG, σ 1", perturbation="seg"), row("SEG, σ → ∞", perturbation="seg_mean"),
            row("TPG", perturbation="tpg"), row("first half", end_percent=0.5), row("second half", start_percent=0.5),
            row("middle", start_percent=0.25, end_percent=0.75), row("every second step", reuse_every=2))
    checks = tuple(Check(f"{r.name} beats plain PAG", r.name, "PAG") for r in rows[1:])
    return Table("beyond", "Refinements of PAG", "", rows, checks, share=0.5)


def _single_heads(found: Found) -> Table:
    """Every layer of the selection with one head of it, as many as the narrowest has."""
    names = [name for term in found.layers.split(",") for name in _expanded(term.strip())]
    rows = (Row("all heads", pag(found.scale, found.layers)),
            *(Row(f"head {h} only", pag(found.scale, ",".join(f"{name}:h{h}" for name in names)))
              for h in range(min(HEADS[name] for name in names))))
    checks = tuple(Check(f"{r.name} beats all heads", r.name, "all heads") for r in rows[1:])
    return Table("heads", "Single heads", "", rows, checks, share=0.5)


def _expanded(term: str) -> list[str]:
    """"u2-3" -> u2, u3; "all" -> every layer."""
    if term == "all":
        return list(SINGLE_LAYERS)
    first, _, last = term.partition("-")
    return [f"{term[0]}{i}" for i in range(int(first[1:]), int(last or first[1:]) + 1)]


def _high_scale(found: Found) -> Table:
    strong = pag(5.0, found.layers)
    rows = (Row("s 5", strong), *(Row(f"s 5, rescale {r:g}, {mode}", strong.but(options={
        "rescale": r, "rescale_mode": mode})) for r, mode in ((0.7, "full"), (0.7, "partial"), (1.0, "full"))))
    checks = tuple(Check(f"{r.name.removeprefix('s 5, ')} lowers the distance", r.name, "s 5") for r in rows[1:])
    return Table("rescale", "Rescaling at a high scale", "", rows, checks, share=0.5)


def _weak_selves(guided: Config) -> Table:
    """What else makes the same model weaker, at PAG's scale and layers; a random share is one of all layers."""
    everywhere = guided.but(layers="all")
    rows = (Row("PAG", guided),
            *(Row(name, guided.but(options={"perturbation": kind})) for name, kind in (
                ("block skipped (SLG, STG)", "skip_block"), ("attention skipped", "skip_attention"),
                ("tokens shuffled (TPG)", "shuffle"), ("Sinkhorn (ASAG)", "sinkhorn"), ("uniform attention", "uniform"),
                ("temperature 2", "temperature"))),
            *(Row(f"{share:.0%} of all layers, redrawn at each step (S²){', blocks skipped' * (kind != 'identity')}",
                  everywhere.but(options={"perturbation": kind, "random_share": share}))
              for kind in ("identity", "skip_block") for share in (0.1, 0.25)))
    checks = [Check(f"{row.name} beats plain PAG", row.name, "PAG") for row in rows[1:]]
    checks += [Check(f"{row.name} raises the score", row.name, "PAG", "score", higher=True) for row in rows[1:]]
    return Table("weak", "Other weak predictions", "", rows, tuple(checks), share=0.5)


def _negative_row(cfg: Config, found: Found) -> Table:
    """CFG away from a negative that is perturbed, at no extra cost; softer from row to row."""
    def row(name: str, **options) -> Row:
        return Row(name, cfg.but(scale=1.0, layers=found.layers, options={"row": "negative", **options}))

    rows = (Row("CFG", cfg), row("negative perturbed"), row("half perturbed", strength=0.5),
            row("a quarter perturbed", strength=0.25), row("negative's blocks skipped", perturbation="skip_block"))
    checks = [Check(f"{one.name} beats CFG", one.name, "CFG") for one in rows[1:]]
    checks += [Check(f"{one.name} costs no more than CFG", one.name, "CFG", "flops", no_worse=True) for one in rows[1:]]
    return Table("negative", "Perturbing the negative's row", "", rows, tuple(checks), share=0.5)


def _rules(guided: Config, found: Found) -> Table:
    """Rules on the delta, which cost no pass; at PAG's scale, and early damping at a high one, which it is for."""
    strong = pag(5.0, found.layers)
    rows = (Row("PAG", guided), *(Row(name, guided.but(options=options)) for name, options in (
        ("early damping 8 (MAMBO-G)", {"early_damping": 8.0}),
        ("momentum 0.3 (Momentum Guidance, HiGS)", {"momentum": 0.3}),
        ("coarse part halved (FDG)", {"coarse_scale": 0.5}),
        ("coarse part doubled (FDG)", {"coarse_scale": 2.0}),
        ("tangential part 1.2 (TAG)", {"tangential_scale": 1.2}),
    )), Row("s 5", strong), Row("s 5, early damping 8", strong.but(options={"early_damping": 8.0})))
    checks = [Check(f"{row.name} beats plain PAG", row.name, "PAG") for row in rows[1:-2]]
    checks.append(Check("early damping lowers the distance at a high scale", rows[-1].name, "s 5"))
    return Table("rules", "Rules on PAG's delta", "", rows, tuple(checks), share=0.5)


def quick(plan: list[Table]) -> list[Table]:
    """What a CPU can do while one waits: Table 1, and four points of Fig. 12, at the settings found before."""
    table1, fig12 = plan[:2]
    few = ("s 0", "s 1", "s 3", "s 7")
    return [table1, replace(fig12, rows=tuple(row for row in fig12.rows if row.name in few), share=1.0, checks=tuple(
        check for check in fig12.checks if {check.better, check.worse} <= set(few)))]
