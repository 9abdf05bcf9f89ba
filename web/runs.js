/** What the server tells of runs, each told to the workflow that runs: where another one is shown, when it is back. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { changed } from "./watch.js";

const FLEETING = "pag.preview"; // of no use later
const workflows = new Map(); // the graph's id of each run that this page has asked for
const waiting = new Map(); // what is to be told to a graph that is not shown: its id -> [[what to do, detail]]
let asked = Promise.resolve(); // fulfilled when the server has answered to every request to run

/** Begins to note which run is whose. */
export function followRuns() {
  const send = api.queuePrompt;
  api.queuePrompt = function (number, prompt, ...rest) {
    const answer = send.call(this, number, prompt, ...rest);
    const noted = answer.then(({ prompt_id }) => { workflows.set(prompt_id, prompt.workflow?.id); }, () => {});
    asked = Promise.all([asked, noted]);
    return answer;
  };
}

/** Calls `then(detail)` for an event of a run, while the run's workflow is shown. */
export function onRun(event, then) {
  api.addEventListener(event, async ({ detail }) => {
    await asked; // the events of a run may overtake the answer that says its id
    const graph = workflows.get(detail.prompt_id) ?? app.rootGraph.id;
    if (graph !== app.rootGraph.id) {
      if (event !== FLEETING) waiting.set(graph, [...(waiting.get(graph) ?? []), [then, detail]]);
      return;
    }
    then(detail);
    changed(0);
  });
}

/** A workflow is shown: tells it what has happened meanwhile. */
export function catchUp() {
  const { id } = app.rootGraph;
  for (const [then, detail] of waiting.get(id) ?? []) then(detail);
  waiting.delete(id);
}
