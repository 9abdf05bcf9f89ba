/**
 * The open workflows, each in a tab, and what belongs to each as long as it is open, when the page is loaded again too.
 * Workflows made from the same file share an id, so a tab is known by its object in the editor, and after a reload by
 * its path.
 */

import { app } from "../../scripts/app.js";

const KEY = "pag.tabs"; // in the browser's storage: {path: state}
// Each page has the first for itself; a page that is new takes up, as the editor does, where the latest one was.
const STORAGES = [sessionStorage, localStorage];
const states = new Map();
let paths = ""; // of the open tabs
let before = read(); // of the page as it was before it was loaded, until its tabs are back

export const openTabs = () => (app.extensionManager.workflow.openWorkflows ?? []).filter(Boolean);
const idOf = (tab) => tab?.activeState?.id;

/** The tab whose graph is shown. The editor switches the tab a moment after the graph. */
export function shownTab() {
  const { activeWorkflow } = app.extensionManager.workflow;
  if (idOf(activeWorkflow) === app.rootGraph.id) return activeWorkflow;
  return openTabs().find((tab) => idOf(tab) === app.rootGraph.id) ?? activeWorkflow;
}

export const isOpen = (tab) => openTabs().includes(tab);

/** {said: {place: {messages, text, images, without}}, previews: {place: the latest picture of a run that goes on},
 * runs: [the ids of runs whose end the tab has not heard of], asking: how many requests to run have no answer yet,
 * leftAsking: whether some had none when the page was loaded again} of a tab. */
export function stateOf(tab) {
  if (!states.has(tab)) {
    const { said = {}, runs = [], asking, leftAsking } = before[tab?.path] ?? {};
    states.set(tab, { said, runs, asking: 0, leftAsking: asking > 0 || leftAsking, previews: {} });
    delete before[tab?.path];
  }
  return states.get(tab);
}

/** Keeps what belongs to the tabs for the next load of the page. */
export function keepStates() {
  const now = Object.fromEntries(openTabs().map((tab) => [tab.path, { ...stateOf(tab), previews: undefined }]));
  try {
    for (const storage of STORAGES) storage.setItem(KEY, JSON.stringify({ ...before, ...now }));
  } catch { /* full or forbidden: then only until the page is left */ }
}

/** Looks which tabs are there, and under which names: the editor brings back those that were open, and what a closed one
 * had is gone. */
export function followTabs() {
  openTabs().forEach(stateOf);
  for (const tab of states.keys()) {
    if (!isOpen(tab) && tab !== shownTab()) states.delete(tab); // the shown one may be getting another name
  }
  const now = openTabs().map(({ path }) => path).join("\n");
  if (now === paths) return;
  paths = now;
  keepStates();
}

/** From the first touch on, a tab that is new was opened by hand. */
export function followHands() {
  const touched = () => {
    if (!openTabs().length) return;
    followTabs();
    before = {};
    for (const name of ["pointerdown", "keydown"]) document.removeEventListener(name, touched, true);
  };
  for (const name of ["pointerdown", "keydown"]) document.addEventListener(name, touched, true);
}

function read() {
  try {
    const [found] = STORAGES.map((storage) => storage.getItem(KEY)).filter(Boolean);
    return JSON.parse(found ?? "{}");
  } catch {
    return {};
  }
}
