/**
 * The page's side of ComfyUI Cluster: one extension with the command "Queue Cluster".
 *
 * ComfyUI imports every .js file of this folder as an extension of its own, and no .mjs file:
 * this is the only .js file. All of it is built on what the frontends 1.27 to 1.58 offer to
 * extensions: nothing of the page is patched, and nothing is drawn into nodes, so that it works on
 * the classic canvas and with Nodes 2.0 alike.
 */

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { watchFailures } from "./failures.mjs";
import { unmarkNodes } from "./graph.mjs";
import { queueCluster } from "./queue.mjs";

const COMMAND = "Cluster.Queue";
const LABEL = "Queue Cluster";
const TOOLTIP = "Run this workflow on every instance of the cluster";
const ICON = "pi pi-sitemap";

app.registerExtension({
  name: "ComfyUI.Cluster",
  // No keybinding: a combination that another pack has taken would greet users with an error.
  commands: [
    { id: COMMAND, label: LABEL, tooltip: TOOLTIP, icon: ICON, function: queueCluster },
  ],
  menuCommands: [{ path: ["Extensions", "Cluster"], commands: [COMMAND] }],
  // Beside the Run button. Frontends before 1.31 do not know this key: they have the menu.
  actionBarButtons: [
    { icon: ICON, label: LABEL, tooltip: TOOLTIP, onClick: () => void queueCluster() },
  ],
  setup() {
    watchFailures();
    // What was wrong with the last run says nothing of the one that was queued now, by any button.
    api.addEventListener("promptQueued", unmarkNodes);
  },
});
