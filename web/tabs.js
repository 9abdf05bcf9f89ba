/** The open workflows, each in a tab. Workflows made from the same file share an id. */

import { app } from "../../scripts/app.js";

const open = () => app.extensionManager.workflow.openWorkflows ?? [];
const idOf = (tab) => tab?.activeState?.id;

/** The tab whose graph is shown. The editor switches the tab a moment after the graph. */
export function shownTab() {
  const { activeWorkflow } = app.extensionManager.workflow;
  if (idOf(activeWorkflow) === app.rootGraph.id) return activeWorkflow;
  return open().find((tab) => idOf(tab) === app.rootGraph.id) ?? activeWorkflow;
}

export const isOpen = (tab) => open().includes(tab);

/** Whether this is the path of another tab than the shown one, with a graph of the same id. */
export function isTwin(path) {
  return open().some((tab) => tab !== shownTab() && tab.path === path && idOf(tab) === app.rootGraph.id);
}
