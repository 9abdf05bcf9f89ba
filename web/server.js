/** Requests to this pack's routes. The layer grammar and all formulas exist on the server only. */

import { api } from "../../scripts/api.js";
import { t, translated } from "./texts.js";

/** The JSON answer of POST /pag/<path> (GET without a body); {error, isUnanswered} when there is none. */
export async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  const options = body && { method: "POST", headers, body: JSON.stringify(body) };
  try {
    const response = await api.fetchApi(`/pag/${path}`, options);
    const answer = await response.json().catch(() => ({}));
    if (answer.error) answer.error = translated(answer.error);
    if (response.ok || answer.error) return answer;
    const error = t("The server could not answer (HTTP {status}).", { status: response.status });
    return { error, isUnanswered: true };
  } catch {
    return { error: t("The server cannot be reached."), isUnanswered: true };
  }
}

/** An `ask` in which only the newest request counts: answers to older ones are null. */
export function newestOnly() {
  let newest = 0;
  return async (path, body) => {
    const turn = ++newest;
    const answer = await ask(path, body);
    return turn === newest ? answer : null;
  };
}

const known = new Map();

/** The answer of POST /pag/model for {loader} or {family}; cached, except errors. */
export function describeModel(source) {
  const key = JSON.stringify(source);
  if (!known.has(key)) {
    known.set(key, ask("model", source).then((answer) => {
      if (answer.error) known.delete(key);
      return answer;
    }));
  }
  return known.get(key);
}

/** After files may have changed on disk. */
export function forgetModels() {
  known.clear();
}
