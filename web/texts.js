/** Our texts in the editor's language. Our locales/<language>/main.json has them under "pag", by the English text. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

let translations = {};

/** To be awaited before the first text is made; without an answer, or without our language, all stays English. */
export async function loadTexts() {
  const all = await api.getCustomNodesI18n().catch(() => ({}));
  translations = all[app.extensionManager.setting.get("Comfy.Locale")]?.pag ?? {};
}

/** The translation of an English text, with each value in the place of its {name}. */
export function t(text, values = {}) {
  return (translations[text] ?? text).replace(/\{(\w+)\}/g, (_, name) => values[name]);
}
