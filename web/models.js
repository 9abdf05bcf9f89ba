/** Which file a node's model comes from. */

import { field, source } from "./graph.js";
import { isLinked } from "./nodes.js";

const FILE = /\.(safetensors|sft|gguf|ckpt|pt|pth|bin)$/i;
const LIKELY = /unet|ckpt|checkpoint|diffusion|gguf|^model/i;
const OTHER = /vae|clip|lora|control|text|upscale|style|vision|audio/i;
const PIPE = /PIPE|CONTEXT|^\*$/i;
const MAX_HOPS = 200;

/**
 * The loader upstream of a node's model, past all that takes a model and gives one: {loader: {node, input, file}};
 * {unknown: true} where a switch or another node decides while it runs; {other: class} for a loader that names no
 * file; null where none is connected.
 */
export function loaderOf(node) {
  let from = node && arriving(node);
  for (let hops = 0; hops < MAX_HOPS; hops++) {
    if (!from) return null;
    if (from.unsure) return { unknown: true };
    const at = from.node;
    if (!onward(at).length) return fileOf(at) ?? { other: at.comfyClass ?? at.type };
    from = arriving(at);
  }
  return null;
}

/** What feeds a node's model: the first connected input. */
function arriving(node) {
  let last = null;
  for (const index of onward(node)) {
    last = source(node, index);
    if (last) return last;
  }
  return last;
}

/** The linked inputs that may carry a model: MODEL inputs, else pipes. */
function onward(node) {
  const linked = node.inputs?.map(({ type }, index) => ({ type, index }))
    .filter(({ index }) => isLinked(node, index)) ?? [];
  const models = linked.filter(({ type }) => type === "MODEL");
  const found = models.length ? models : linked.filter(({ type }) => /GUIDER/.test(type));
  return (found.length ? found : linked.filter(({ type }) => PIPE.test(type))).map(({ index }) => index);
}

/** The file that a loader's widgets name. */
function fileOf(node) {
  const names = [...new Set((node.widgets ?? []).map(({ name }) => name))];
  const found = names.map((input) => ({ input, ...field(node, input) }));
  const files = found.filter(({ value, unknown }) => unknown || (typeof value === "string" && FILE.test(value)))
    .filter(({ input, unknown }) => !OTHER.test(input) && (!unknown || LIKELY.test(input)));
  const file = files.find(({ input }) => LIKELY.test(input)) ?? files[0];
  if (!file) return null;
  return file.unknown ? { unknown: true } : { loader: { node: node.comfyClass, input: file.input, file: file.value } };
}
