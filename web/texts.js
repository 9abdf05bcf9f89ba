/** Our texts in the editor's language. locales/<language>/main.json is keyed by the English text: texts of web/ under
 * "pag", sentences of the server, with {0}, {1} ... for their values, under "pag_server". */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let texts = {};
let sentences = []; // [a pattern of an English sentence of the server's, its translation]

/** Await this before making the first text. Without an answer or a translation, all texts stay English. */
export async function loadTexts() {
  const all = await api.getCustomNodesI18n().catch(() => ({}));
  const ours = all[app.extensionManager.setting.get("Comfy.Locale")] ?? {};
  texts = ours.pag ?? {};
  sentences = Object.entries(ours.pag_server ?? {}).map(([english, text]) => [patternOf(english), text])
    .sort(([a], [b]) => b.source.length - a.source.length); // longer patterns come first
}

/** The translation of an English text, with its {name}s replaced by values. */
export function t(text, values = {}) {
  return (texts[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The translation of a sentence of the server, with its values; an unknown sentence stays as it is. Sentences may
 * contain others: "PAG: {}" or "name.safetensors: {}". */
export function translated(text, depth = 0) {
  for (const [pattern, translation] of sentences) {
    const values = pattern.exec(text)?.slice(1);
    if (!values) continue;
    return translation.replace(/\{(\d+)\}/g, (_, index) => (
      depth < 2 ? translated(values[index], depth + 1) : values[index]));
  }
  return text;
}

const patternOf = (english) => new RegExp(
  `^${english.replace(/[.*+?^$()|[\]\\]/g, "\\$&").replace(/\{\d+\}/g, "([^]*?)")}$`);
