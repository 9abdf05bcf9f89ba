"""What the editor asks the server: a model's layers, what a selection means, and what a run will do and cost.

Every answer is JSON. Looking into a file and building a network take a moment, so they run in a thread.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from typing import TypeVar

from aiohttp import web

from ....pag_core.attention import PerturbationError
from ....pag_core.checks import SettingError, check_choice, check_range, check_whole
from ....pag_core.cost import plan_run, run_cost
from ....pag_core.presets import PRESETS
from ....pag_core.schedule import PercentToSigma
from ....pag_core.selection import Layer, SelectionError, text_of
from ....pag_core.settings import PAGOptions, PAGSettings
from ....pag_core.stages import all_layers, select_stages
from ..hooks.ways import check_family
from ..messages import said_in
from ..sampling.sampling import SCHEDULERS
from .known_models import KnownModel, UnknownFamilyError, families, of_family, of_loader
from .model_files import ModelFileError
from .presets import presets

T = TypeVar("T")

# One question after another: the second about a file then finds the first one's answer.
_worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pag")
MAX_BODY = 64 * 1024  # bytes
_FAMILIES = "/pag/families"
_MAX_POINTS = 1000  # of a plot; of more steps as many are drawn, and the shares are the same
_COLUMNS = {"input": "encoder", "middle": "middle", "output": "decoder"}
_NOTE = "FLOPs of this run as a multiple of a plain CFG run with the same number of steps."
_NOTE_WITHOUT_CFG = "FLOPs with PAG as a multiple of those without, if the sampler uses CFG in every step."


def _straight(percent: float) -> float:
    """Stands for the noise levels of a model that is not known."""
    return 1.0 - percent


class BadRequestError(ValueError):
    """A body that is not what the route takes."""


def register() -> None:
    """Add the routes to the host's server, which may not be there: some programs use the host's nodes alone.

    Where the pack is installed twice, the first keeps them; the host would not start with both.
    """
    server = getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
    if server is None:
        return
    routes = server.routes
    if any(getattr(route, "path", None) == _FAMILIES for route in routes):
        return
    routes.get(_FAMILIES)(_families)
    for path, answer in (("/pag/model", model_answer), ("/pag/select", select_answer), ("/pag/plot", plot_answer),
                         ("/pag/presets", presets_answer), ("/pag/said", said_answer)):
        routes.post(path)(_handler(answer))


async def _families(request: web.Request) -> web.Response:
    return web.json_response({"families": families()})


def _handler(answer: Callable[[dict], dict]):
    async def handle(request: web.Request) -> web.Response:
        try:
            body = await _body(request)
            return web.json_response(await asyncio.get_running_loop().run_in_executor(_worker, answer, body))
        except (SelectionError, SettingError) as error:
            return web.json_response({"error": str(error)})  # what someone is typing may be wrong; that is an answer
        except (BadRequestError, UnknownFamilyError) as error:
            return web.json_response({"error": str(error)}, status=400)
        except ModelFileError as error:
            return web.json_response({"error": str(error)}, status=422)

    return handle


async def _body(request: web.Request) -> dict:
    text = b""
    async for chunk in request.content.iter_chunked(MAX_BODY):
        text += chunk
        if len(text) > MAX_BODY:
            raise BadRequestError(f"The body is larger than {MAX_BODY} bytes.")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        raise BadRequestError("The body is not JSON.") from None
    return _typed("the body", body, dict)


def _typed(name: str, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise BadRequestError(f"{name} must be of type {kind.__name__}, got {type(value).__name__}.")
    return value


def _known(identity: object) -> KnownModel:
    """The model that {"loader": {...}} or {"family": name} names."""
    identity = _typed("the model", identity, dict)
    if "family" in identity:
        return of_family(_typed("family", identity["family"], str))
    loader = _typed("loader", identity.get("loader"), dict)
    return of_loader({key: _typed(f"loader.{key}", loader.get(key), str) for key in ("node", "input", "file")})


def model_answer(body: dict) -> dict:
    """The layers of a model, drawn in columns."""
    known = _known(body)
    found = known.layers
    columns: dict[str, list[dict]] = {
        kind: [] for kind in (_COLUMNS if found.family is None else [group.name for group in found.family.groups])}
    for layer, key in found.layers.items():
        columns[key[0]].append({"name": layer.name, "heads": layer.heads, "share": found.share({layer: None}),
                                "aliases": layer.aliases, "level": known.levels.get(layer, 1)})
    return {
        "id": {key: body[key] for key in ("family" if "family" in body else "loader",)},
        "name": known.name, "kind": "transformer" if found.family else "u-net", "auto": found.auto,
        "source": found.source,
        "columns": [{"title": _COLUMNS.get(kind, kind) or "blocks", "layers": cells}
                    for kind, cells in columns.items()],
        "presets": presets(found)}


def presets_answer(_: dict) -> dict:
    """{"presets": {name: {input of PAG Options: value}}}, each with every input that is a widget."""
    inputs = [one for one in fields(PAGOptions) if one.name != "scale_mask"]
    return {"presets": {name: {one.name: preset.values.get(one.name, one.default) for one in inputs}
                        for name, preset in PRESETS.items()}}


def said_answer(body: dict) -> dict:
    """{"messages": [{"node", "kind", "text"}]} of a run's nodes, of those too whose results an earlier run computed."""
    return {"messages": said_in(_typed("prompt_id", body.get("prompt_id"), str))}


def select_answer(body: dict) -> dict:
    """What a selection takes and costs, whether it comes as text or as layers; "whole" names what is done to whole
    blocks, "error" why the model's family does not allow it."""
    found = _known(body.get("model")).layers
    layers = tuple(found.layers)
    text = text_of(_selection(_typed("selected", body["selected"], dict), layers), layers) if "selected" in body else \
        _typed("layers", body.get("layers"), str)
    stages = select_stages(text, layers, found.auto)
    chosen = all_layers(stages)
    text = text_of(chosen, layers) if len(stages) == 1 else text.strip()
    options = _options(body, lenient=True)
    refused = {}
    try:
        check_family(found, options)
    except PerturbationError as error:
        refused = {"error": str(error)}
    selected = {layer.name: None if heads is None else sorted(heads) for layer, heads in chosen.items()}
    return refused | {"selected": selected, "share": max(0.0, found.extra(stages, options)), "text": text,
                      "whole": options.perturbation if options.kind.acts_on_block else None}


def _options(body: dict, lenient: bool = False) -> PAGOptions:
    """The PAG Options of a question. `lenient`: the neutral ones in the place of such as do not go together."""
    given = _typed("options", body.get("options", {}), dict)
    given = {name: value for name, value in given.items() if name != "preset"}  # which the values already follow
    if unknown := given.keys() - {field.name for field in fields(PAGOptions)}:
        raise BadRequestError(f"PAG Options has no {', '.join(sorted(map(repr, unknown)))}.")
    try:
        return PAGOptions(**given)
    except SettingError:
        if lenient:
            return PAGOptions()
        raise


def _selection(selected: dict, layers: tuple[Layer, ...]) -> dict[Layer, frozenset[int] | None]:
    named = {layer.name: layer for layer in layers}
    chosen = {}
    for name, heads in selected.items():
        if name not in named:
            raise BadRequestError(f"selected: this model has no layer {name!r}.")
        layer = named[name]
        if heads is not None:
            numbers = _typed(f"selected.{name}", heads, list)
            for head in numbers:
                check_whole(f"selected.{name}: the head", head, 0, layer.heads - 1)
            if not numbers:
                continue
            heads = frozenset(numbers) if len(set(numbers)) < layer.heads else None
        chosen[layer] = heads
    return chosen


def plot_answer(body: dict) -> dict:
    """What CFG and PAG do in each step, and what that costs. "audio" {"cfg", "scale"} are those of the sound, where it
    is guided apart from the video; "exchange" says whether a step also takes the prediction without the exchange
    between the two, a pass of its own."""
    known = None if body.get("model") is None else _known(body["model"])
    options, layers = _options(body), _typed("layers", body.get("layers", "auto"), str)
    percent_to_sigma = known.percent_to_sigma if known else _straight
    sigmas = _sigmas(body, known, percent_to_sigma)
    plans = [plan_run(sigmas, PAGSettings(one.get("scale", 3.0), layers, options), percent_to_sigma, one.get("cfg"),
                      body.get("cfg_start_percent", 0.0), body.get("cfg_end_percent", 1.0))
             for one in (body, *([_typed("audio", body["audio"], dict)] if "audio" in body else []))]
    steps = [replace(both[0], runs_uncond=any(step.runs_uncond for step in both),
                     runs_perturbed=any(step.runs_perturbed for step in both)) for both in zip(*plans, strict=True)]
    share = None
    if known:
        stages = select_stages(layers, tuple(known.layers.layers), known.layers.auto)
        share = known.layers.extra(stages, options, [step.percent for step in steps if step.runs_perturbed])
    cost = run_cost(steps, share, float(bool(body.get("exchange")))) if share is not None and steps else None
    points = [asdict(step) for step in steps]
    for point, step in zip(points, plans[-1], strict=True) if len(plans) > 1 else ():
        point |= {"audio_cfg": step.cfg, "audio_pag": step.pag}
    return {"points": points, "cost": cost,
            "note": _NOTE if body.get("cfg") is not None else _NOTE_WITHOUT_CFG}


def _sigmas(body: dict, known: KnownModel | None, percent_to_sigma: PercentToSigma) -> list[float]:
    """The noise levels of the run's steps: the sampler's where model and scheduler are known, else at even distances,
    as the scheduler "normal" has them."""
    steps, scheduler, denoise = body.get("steps", 25), body.get("scheduler"), body.get("denoise", 1.0)
    check_whole("steps", steps, 1, 10000)
    check_range("denoise", denoise, 0.0, 1.0)
    steps = min(steps, _MAX_POINTS)
    if known and scheduler is not None:
        check_choice("scheduler", scheduler, tuple(SCHEDULERS))
        return known.sigmas(steps, scheduler, denoise)
    percents = (1.0 - denoise * (1.0 - step / max(steps - 1, 1)) for step in range(steps))
    return [float(percent_to_sigma(percent)) for percent in percents]
