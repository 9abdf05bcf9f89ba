/** Our texts in the editor's language. Our locales/<language>/main.json has them by the English text: those of web/
 * under "pag", the server's sentences, with {} for each value, under "pag_server". */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let texts = {};
let sentences = []; // [a pattern of an English sentence of the server's, its translation]

/** To be awaited before the first text is made; without an answer, or without our language, all stays English. */
export async function loadTexts() {
  const all = await api.getCustomNodesI18n().catch(() => ({}));
  const ours = all[app.extensionManager.setting.get("Comfy.Locale")] ?? {};
  texts = ours.pag ?? {};
  sentences = Object.entries(ours.pag_server ?? {}).map(([english, text]) => [patternOf(english), text])
    .sort(([a], [b]) => b.source.length - a.source.length); // what says more comes first
}

/** The translation of an English text, with each value in the place of its {name}. */
export function t(text, values = {}) {
  return (texts[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** The translation of what the server says, values included; a sentence that is not known stays as it is. Sentences
 * may stand inside others: "PAG: {}" or "name.safetensors: {}". */
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
