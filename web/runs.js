/**
 * Passes each run's events to the workflow that started it; if another is shown, when that one is shown again. What a
 * page misses while it is loaded, or has no connection, it reads in the server's history when the run has ended.
 */

import { api } from "../../scripts/api.js";
import { ask } from "./server.js";
import { isOpen, keepStates, openTabs, shownTab, stateOf } from "./tabs.js";
import { changed } from "./watch.js";

const FLEETING = "pag.preview"; // useless later
const ENDS = ["execution_success", "execution_error", "execution_interrupted"];
const MOST = 1000; // runs, and what waits; of more the oldest are forgotten
const RECENT = 8; // runs of the history among which one without an answer is looked for
const takers = {}; // {event: what takes its detail}
const runs = new Map(); // {id: {tab, missed: whether events may have been, looked: the news after which it was looked for}}
let waiting = []; // what is to be told when its tab is shown: [tab, event, detail]
let asked = Promise.resolve(); // fulfilled when the server has answered to every request to run
let news = 0; // how often the queue has changed
let isIdle = false;

/** Starts recording which tab started which run. */
export function followRuns() {
  const send = api.queuePrompt;
  api.queuePrompt = function (...given) {
    const tab = shownTab();
    stateOf(tab).asking += 1;
    keepStates();
    const answer = send.apply(this, given);
    const noted = answer.then(({ prompt_id }) => note(prompt_id, tab), () => {}).then(() => {
      stateOf(tab).asking -= 1;
      keepStates();
    });
    asked = Promise.all([asked, noted]);
    return answer;
  };
  api.addEventListener("reconnected", () => runs.forEach((run) => { run.missed = true; }));
  // It comes with every connection, and when a run has gone from the queue to the history.
  api.addEventListener("status", ({ detail }) => {
    news += 1;
    isIdle = detail?.exec_info?.queue_remaining === 0;
    changed();
  });
}

function note(prompt_id, tab) {
  runs.set(prompt_id, { tab });
  if (runs.size > MOST) runs.delete(runs.keys().next().value);
  stateOf(tab).runs.push(prompt_id);
}

/** A run that this page has asked for, before it was loaded again too. */
function runOf(prompt_id) {
  for (const tab of openTabs()) {
    for (const id of stateOf(tab).runs) if (!runs.has(id)) runs.set(id, { tab, missed: true });
  }
  return runs.get(prompt_id);
}

/** Calls `then(detail)` for an event of a run, while the run's workflow is shown. Runs not started by this page are
 * shown in the workflow that is there. */
export function onRun(event, then) {
  takers[event] = then;
  api.addEventListener(event, async ({ detail }) => {
    await asked; // the events of a run may overtake the answer that says its id
    const { tab = shownTab() } = runOf(detail.prompt_id) ?? {};
    if (tab === shownTab()) {
      tell(event, detail);
      changed(0);
    } else if (event !== FLEETING) {
      waiting = [...waiting, [tab, event, detail]].slice(-MOST);
    }
  });
}

/** Tells the shown tab of an event. Its earlier runs are over then, and this one with its end. */
function tell(event, detail) {
  takers[event]?.(detail);
  const own = stateOf(shownTab()).runs;
  const index = own.indexOf(detail.prompt_id);
  const over = index + Number(ENDS.includes(event) && !runs.get(detail.prompt_id)?.missed);
  if (index < 0 || !over) return;
  own.splice(0, over);
  keepStates();
}

/** Tells the shown tab what happened while it was hidden, or unheard. */
export function catchUp() {
  const tab = shownTab();
  const now = waiting.filter(([one]) => one === tab);
  waiting = waiting.filter(([one]) => one !== tab && isOpen(one));
  for (const [, event, detail] of now) tell(event, detail);
  runOf();
  findAsked(tab);
  recover(tab);
}

/** The page was left before the server had answered to a request to run: its id is the newest of this page's runs of
 * this workflow. */
async function findAsked(tab) {
  const state = stateOf(tab);
  if (!state.leftAsking || !news || !api.clientId) return;
  state.leftAsking = false;
  const get = (path) => api.fetchApi(path).then((response) => response.json()).catch(() => ({}));
  const [{ queue_running = [], queue_pending = [] }, history] = await Promise.all(
    [get("/queue"), get(`/history?max_items=${RECENT}`)]);
  const mine = [...Object.values(history).map(({ prompt }) => prompt), ...queue_running, ...queue_pending]
    .filter(([, , , extra]) => extra?.client_id === api.clientId
      && extra.extra_pnginfo?.workflow?.id === tab.activeState?.id)
    .sort(([a], [b]) => a - b);
  const id = mine.at(-1)?.[1];
  if (id && !state.runs.includes(id)) state.runs.push(id);
  keepStates();
  changed(0);
}

/** Looks for the newest run of a tab that has ended unheard. A run is lost if nothing waits and the history has it not:
 * the server was started anew. */
async function recover(tab) {
  const own = stateOf(tab).runs;
  for (const id of [...own].reverse()) {
    const run = runs.get(id);
    if (!run.missed || run.looked === news) continue;
    run.looked = news;
    const isLost = isIdle;
    const events = await historyOf(id);
    if (!own.includes(id)) return; // a later run has begun
    if (tab !== shownTab()) run.looked = undefined;
    else if (events || (isLost && events === null)) end(id, events ?? [["execution_interrupted", {}]]);
  }
}

/** Tells what a run had to tell. */
function end(id, events) {
  runs.get(id).missed = false;
  for (const [event, detail] of events) tell(event, { ...detail, prompt_id: id });
  changed(0);
}

/** The events of a run that has ended: [event, detail]; null for another one, undefined without an answer. */
async function historyOf(id) {
  const asking = api.fetchApi(`/history/${id}`).then((response) => response.json());
  const [answer, { messages = [] }] = await Promise.all([asking.catch(() => {}), ask("said", { prompt_id: id })]);
  if (!answer?.[id]) return answer && null;
  const { status, outputs = {}, meta = {} } = answer[id];
  const host = status?.messages ?? [];
  return [
    ...host.filter(([event]) => event === "execution_cached"),
    ...messages.map((message) => ["pag.message", message]),
    ...Object.entries(outputs).map(([node, output]) => ["executed", { node, ...meta[node], output }]),
    ...host.filter(([event]) => ENDS.includes(event)),
  ];
}
