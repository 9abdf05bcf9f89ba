"""nox -s soak: sends mixed prompts (valid, invalid, some cancelled) to a real server and looks for leaks.

Every prompt must end with an image, a clear error or its cancellation, every request to the /pag routes with JSON, and
memory, handles, threads and processes must not grow beyond their noise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request

import psutil
from harness.client import refusal
from harness.errors import HarnessError, command
from harness.host import CACHE, get_comfyui
from harness.server import Server
from tqdm import tqdm

from .prompts import Attempt, PromptMaker, question
from .vitals import LIMITS, Sample, trend

PATIENCE = 180.0  # seconds for a prompt; longer counts as unanswered
CANCELLED = 0.2  # share of the prompts
# Raised to say what was wrong.
CLEAR = ("ValueError", "SettingError", "SelectionError", "GradientError", "FileNotFoundError")
# With these, what is resident is what is in use: glibc takes blocks of 64 kB and more from the system one by one, and
# gives them back. By itself it raises both limits as it goes, and then keeps whole heaps for single blocks in them.
EXACT_MEMORY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": str(2**16), "MALLOC_TRIM_THRESHOLD_": str(2**17)}
ANSWERS = {"picture": "images", "refused": "rejected when queued", "error": "clear errors",
           "interrupted": "interrupted", "deleted": "deleted from the queue"}


@dataclass
class Report:
    seed: int
    seconds: float = 0.0
    answers: Counter = field(default_factory=Counter)  # of prompts, by ANSWERS; PAG Layers' text is a picture too
    flawed: int = 0  # prompts with something wrong in them
    questions: Counter = field(default_factory=Counter)  # by HTTP status
    samples: list[Sample] = field(default_factory=list)
    defects: list[dict] = field(default_factory=list)  # what should not have happened, with the prompt or question

    @property
    def trends(self) -> dict:
        return {name: found for name in LIMITS if (found := trend(name, self.samples))}

    def text(self) -> str:
        prompts = sum(self.answers.values())
        lines = [f"{self.seconds / 60:.1f} minutes, seed {self.seed}: {prompts} prompts, {self.flawed} invalid; "
                 f"{sum(self.questions.values())} requests",
                 "prompts    " + ", ".join(f"{self.answers[key]} {name}" for key, name in ANSWERS.items()),
                 "requests   " + ", ".join(f"{count} × {status}" for status, count in sorted(self.questions.items()))]
        for name, found in self.trends.items():
            unit = " MB" if name == "memory" else ""
            lines.append(f"{name:<10} median {found.median:.0f}{unit}, growth {found.growth:+.2f}{unit} in "
                         f"{found.samples} samples, noise {found.noise:.2f}{unit}, limit {found.limit:.2f}{unit}"
                         f"{'  LEAKS' * found.leaks}")
        lines.append(f"defects    {len(self.defects)}")
        return "\n".join(lines)

    def problems(self) -> list[str]:
        leaks = [name for name, found in self.trends.items() if found.leaks]
        return [f"{len(self.defects)} defects"] * bool(self.defects) + [f"{name} grows" for name in leaks]


class Soak:
    def __init__(self, server: Server, seed: int) -> None:
        self.client, self.report = server.client, Report(seed)
        self.rng = random.Random(seed)
        self.maker = PromptMaker(self.client.object_info(), self.rng)
        (self.process,) = psutil.Process(server.process.pid).children()  # the keeper's

    def run(self, seconds: float, pause: float, bar: tqdm) -> None:
        """Goes on for so long; with a pause between prompts of up to twice `pause`, and 120 samples in all."""
        since, sampled = time.monotonic(), 0.0
        try:
            while (gone := time.monotonic() - since) < seconds:
                bar.update(min(gone, seconds) - bar.n)
                bar.set_postfix_str(f"{sum(self.report.answers.values())} prompts, {len(self.report.defects)} defects")
                self.burst([self.maker.make() for _ in range(self.rng.choice([1, 1, 1, 2, 3]))])
                for _ in range(self.rng.randint(0, 3)):
                    self.ask()
                if (now := time.monotonic() - since) - sampled >= seconds / 120:
                    sampled = now
                    self.sample(since)
                time.sleep(self.rng.uniform(0.0, 2.0 * pause))
        finally:
            self.report.seconds = time.monotonic() - since

    def burst(self, attempts: list[Attempt]) -> None:
        """Queues the prompts at once, cancels some, and waits for all their answers."""
        waiting: dict[str, Attempt] = {}
        for attempt in attempts:
            self.report.flawed += attempt.flaw is not None
            try:
                answer = json.loads(self.client.post("/prompt", {"prompt": attempt.prompt}))
            except HTTPError as error:
                with error:
                    self.answered("refused", attempt, refusal(error), expected=attempt.flaw is not None)
                continue
            if answer["node_errors"]:  # the branch with the flaw is refused, the others run
                if attempt.flaw is None:
                    self.defect(f"refused in part: {answer['node_errors']}", prompt=attempt.prompt)
                attempt = replace(attempt, flaw=None)
            waiting[answer["prompt_id"]] = attempt
        cancels = {key: time.monotonic() + self.rng.uniform(0.0, 3.0) for key in waiting
                   if self.rng.random() < CANCELLED}
        may_stop = bool(cancels)  # the host may hit the next prompt with an interruption that comes late
        deadline = time.monotonic() + PATIENCE
        while waiting:
            for key in [key for key, due in cancels.items() if time.monotonic() >= due]:
                del cancels[key]
                self.cancel(key)
            for key, answer in self.ended(waiting).items():
                cancels.pop(key, None)
                self.judge(waiting.pop(key), answer, may_stop)
            if time.monotonic() > deadline:
                for key in waiting:
                    self.answered("unanswered", waiting[key], f"no answer in {PATIENCE:.0f} s", expected=False)
                    self.cancel(key)
                return
            time.sleep(0.1)

    def cancel(self, key: str) -> None:
        self.client.post("/queue", {"delete": [key]})
        self.client.post("/interrupt", {"prompt_id": key})

    def ended(self, waiting: dict[str, Attempt]) -> dict[str, dict | None]:
        """The history of what has ended; None for what is neither there nor in the queue."""
        queue = json.loads(self.client.get("/queue"))
        queued = {item[1] for name in ("queue_running", "queue_pending") for item in queue[name]}
        answers = {}
        for key in waiting.keys() - queued:
            answers[key] = json.loads(self.client.get(f"/history/{key}")).get(key)
            self.client.post("/history", {"delete": [key]})  # what the host remembers of each would look like a leak
        return answers

    def judge(self, attempt: Attempt, answer: dict | None, may_stop: bool) -> None:
        if answer is None:
            self.answered("deleted", attempt, "vanished from the queue", expected=may_stop)
            return
        if answer["status"]["status_str"] == "success":
            shown = any(output.get("images") or output.get("text") for output in answer["outputs"].values())
            self.answered("picture", attempt, "accepted, or no picture", expected=shown and attempt.flaw is None)
            return
        kind, data = answer["status"]["messages"][-1]
        if kind == "execution_interrupted":
            self.answered("interrupted", attempt, "interrupted unasked", expected=may_stop)
            return
        name = data["exception_type"].rpartition(".")[2]
        self.answered("error", attempt, f"{data['node_type']}: {name}: {data['exception_message'].strip()[:500]}",
                      expected=attempt.flaw is not None and name in CLEAR)

    def answered(self, how: str, attempt: Attempt, what: str, expected: bool) -> None:
        self.report.answers[how] += 1
        if not expected:
            self.defect(f"{how}: {what} (flaw: {attempt.flaw})", prompt=attempt.prompt)

    def defect(self, what: str, **cause) -> None:
        self.report.defects.append({"what": what, **cause})
        tqdm.write(f"DEFECT     {what}")

    def ask(self) -> None:
        asked = question(self.rng)
        request = Request(self.client.url + asked.path, asked.body)
        try:
            with self.client.open(request, timeout=PATIENCE) as response:
                status, answer = response.status, json.loads(response.read())
        except HTTPError as error:
            with error:
                status, answer = error.code, error.read()
        except OSError as error:
            status, answer = type(error).__name__, str(error)
        self.report.questions[str(status)] += 1
        good = status == 200 and "error" not in answer if asked.valid else status in (200, 400, 422)
        if not good:
            self.defect(f"{asked.path} answered {status}: {str(answer)[:500]}", body=repr(asked.body)[:2000])

    def sample(self, since: float) -> None:
        """With nothing queued, and what the host may forget forgotten."""
        self.client.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1.0)
        self.report.samples.append(Sample.of(self.process, since))


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="nox -s soak --", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="duration in minutes (default: 60)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the prompts (default: 0)")
    parser.add_argument("--pause", type=float, default=0.5, help="mean seconds between prompts (default: 0.5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this JSON file")
    options = parser.parse_args(arguments)
    if not 0.0 < options.minutes < 100_000:
        raise HarnessError(f"--minutes is {options.minutes:g}; it must be greater than 0.")
    if options.pause < 0.0:
        raise HarnessError(f"--pause is {options.pause:g}; it must be at least 0.")
    if options.json and options.json.exists():
        raise HarnessError(f"--json {options.json}: the file exists and is not overwritten. Name a new one.")

    os.environ.pop("MALLOC_MMAP_MAX_", None)
    os.environ.update(EXACT_MEMORY)
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="soak-", dir=CACHE) as base:
        print("Starting ComfyUI ...", flush=True)
        with Server(get_comfyui(), Path(base), log=Path(base, "server.log")) as server, \
                tqdm(total=60.0 * options.minutes, bar_format="{percentage:3.0f}%|{bar}| {elapsed}{postfix}") as bar:
            soak = Soak(server, options.seed)
            try:
                soak.run(60.0 * options.minutes, options.pause, bar)
            finally:  # Ctrl-C too leaves the figures so far
                bar.close()
                leave(soak.report, options.json)
    if problems := soak.report.problems():
        raise HarnessError(f"{', '.join(problems)} (see above).")


def leave(report: Report, path: Path | None) -> None:
    print(report.text(), flush=True)
    if path:
        figures = {**vars(report), "samples": [asdict(sample) for sample in report.samples],
                   "trends": {name: asdict(found) for name, found in report.trends.items()}}
        path.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    command(main)
