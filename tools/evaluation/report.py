"""The results as JSON, CSV and Markdown."""

from __future__ import annotations

import csv
import io

COLUMNS = {  # metric: (heading, decimals, multiplier)
    "fd": ("Fréchet distance ↓", 2, 1), "fd_concept": ("by the second network ↓", 2, 1),
    "kd": ("kernel distance ↓", 2, 1), "score": ("score ↑", 2, 1),
    "precision": ("precision ↑", 2, 1), "recall": ("recall ↑", 2, 1), "diversity": ("diversity ↑", 2, 1),
    "classes": ("classes", 1, 1), "brightness": ("brightness", 0, 1), "contrast": ("contrast", 0, 1),
    "accuracy": ("label recognized ↑", 2, 1), "label_diversity": ("diversity within a label ↑", 2, 1),
    "label_score": ("score within a label ↑", 2, 1), "lpips": ("perceptual distance ↓", 3, 1),
    "psnr": ("PSNR in dB ↑", 2, 1), "flops": ("GFLOP per sample", 1, 1e-9),
}


def markdown(report: dict) -> str:
    """The tables for people, each with its verdicts."""
    about = report["about"]
    parts = [f"# Evaluation\n\n{describe(about)}"]
    for table in report["tables"]:
        parts.append(f"## {table['title']}{' (' + table['source'] + ')' if table['source'] else ''}")
        parts.append(f"{table['samples']} samples per row. {table.get('note', '')}".rstrip())
        parts.append(_rows(table))
        if table["checks"]:
            parts.append(_checks(table["checks"]))
    return "\n\n".join(parts) + "\n"


def describe(about: dict) -> str:
    found = ", ".join(f"{name} {value}" for name, value in about["found"].items())
    return (f"Model {about['model']} (SHA-256 {about['model_sha256']}), {about['steps']} DDIM steps, the same noise in "
            f"every row, through this pack's nodes in ComfyUI, on {about['device']}. Distances are measured to the "
            f"{about['held_out']} drawings of held-out concepts; precision and recall use at most {about['held_out']} "
            f"samples per row, because there are no more held-out drawings. Distances and scores use the features of a "
            f"small network trained here to classify categories (accuracy {about['accuracy'][0]:.1%} on held-out "
            f"drawings), not of Inception-v3, so they compare only with each other. A second network has another "
            f"architecture and was trained without categories to recognize which drawings show the same concept "
            f"(accuracy {about['accuracy'][1]:.1%}). ± is half the width of a 95 % bootstrap confidence interval over "
            f"the samples; for differences, both rows are resampled together. {about['search']}\n\n"
            f"Settings: {found}.")


def _rows(table: dict) -> str:
    shown = [name for name in COLUMNS if any(name in row["metrics"] for row in table["rows"])]
    lines = ["| | settings | " + " | ".join(COLUMNS[name][0] for name in shown) + " |",
             "|---|---|" + "---:|" * len(shown)]
    real = {"name": f"*{table['real_samples']} real images*", "settings": "", "metrics": table["real"]}
    for row in [real, *table["rows"]]:
        cells = [_cell(name, row["metrics"].get(name)) for name in shown]
        lines.append(f"| {row['name']} | {row['settings']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(name: str, metric: dict | None) -> str:
    if metric is None:
        return ""
    _, decimals, factor = COLUMNS[name]
    margin = metric["margin"]
    return f"{metric['value'] * factor:.{decimals}f}" + (f" ± {margin * factor:.{decimals}f}" if margin else "")


def _checks(checks: list[dict]) -> str:
    lines = ["| claim | difference | confirmed? | by the second network | same sign? |", "|---|---:|---|---:|---|"]
    for check in checks:
        name = COLUMNS[check["metric"]][0].rstrip("↑↓ ")
        second = check.get("second")
        agrees = "" if second is None else "yes" if second["agrees"] else "no"
        lines.append(f"| {check['claim']} | {name} {_difference(check['metric'], check)} | {check['verdict']} | "
                     f"{_difference(check['metric'], second) if second else ''} | {agrees} |")
    return "\n".join(lines)


def _difference(metric: str, found: dict) -> str:
    _, decimals, factor = COLUMNS[metric]
    margin = f" ± {found['margin'] * factor:.{decimals}f}" if found["margin"] else ""
    return f"{found['difference'] * factor:+.{decimals}f}{margin}"


def as_csv(report: dict) -> str:
    """One line for each figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("table", "row", "settings", "samples", "metric", "value", "margin"))
    for table in report["tables"]:
        for row in table["rows"]:
            for name, metric in row["metrics"].items():
                writer.writerow((table["key"], row["name"], row["settings"], table["samples"], name, metric["value"],
                                 metric["margin"]))
    return text.getvalue()
