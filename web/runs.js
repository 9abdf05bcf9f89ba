/** Passes each run's events to the workflow that started it; if another is shown, when that one is shown again. */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { isOpen, shownTab } from "./tabs.js";
import { changed } from "./watch.js";

const FLEETING = "pag.preview"; // useless later
const MOST = 1000; // runs, and what waits; of more the oldest are forgotten
const runs = new Map(); // {tab, graph: its id} of each run that this page has asked for
let waiting = []; // what is to be told when its tab is shown: [run, what to do, detail]
let asked = Promise.resolve(); // fulfilled when the server has answered to every request to run

/** Starts recording which tab started which run. */
export function followRuns() {
  const send = api.queuePrompt;
  api.queuePrompt = function (number, prompt, ...rest) {
    const run = { tab: shownTab(), graph: prompt.workflow?.id };
    const answer = send.call(this, number, prompt, ...rest);
    const noted = answer.then(({ prompt_id }) => note(prompt_id, run), () => {});
    asked = Promise.all([asked, noted]);
    return answer;
  };
}

function note(prompt_id, run) {
  runs.set(prompt_id, run);
  if (runs.size > MOST) runs.delete(runs.keys().next().value);
}

/** Calls `then(detail)` for an event of a run, while the run's workflow is shown. */
export function onRun(event, then) {
  api.addEventListener(event, async ({ detail }) => {
    await asked; // the events of a run may overtake the answer that says its id
    const run = runs.get(detail.prompt_id);
    if (!isShown(run)) {
      if (event !== FLEETING) waiting = [...waiting, [run, then, detail]].slice(-MOST);
      return;
    }
    then(detail);
    changed(0);
  });
}

/** Saving under another name makes a new tab with the same graph. Runs not started by this page are shown here. */
function isShown(run) {
  if (!run || run.tab === shownTab()) return true;
  return !isOpen(run.tab) && run.graph === app.rootGraph.id;
}

/** Delivers what happened while the shown workflow was hidden. */
export function catchUp() {
  const now = waiting.filter(([run]) => isShown(run));
  waiting = waiting.filter((one) => !now.includes(one));
  for (const [, then, detail] of now) then(detail);
}
