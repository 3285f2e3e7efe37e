// node greedy.mjs onebit.wasm MODEL.1bit PROMPT COUNT [ISA]: {"ids": [...], "text": ..., "kernels": [...], seconds} on stdout.
import { readFileSync } from 'node:fs'
import { open } from './core.mjs'

const [wasm, path, prompt, count, isa = 'auto'] = process.argv.slice(2)
const core = open(wasm)
const model = core.model(readFileSync(path), core.isaFromName(isa))
const tokenizer = core.tokenizer(model)
const start = [...core.bos(model), ...tokenizer.encode(prompt)]
const forward = core.runner(model, core.session(model), start.length)
const choose = core.sampler(core.vocabulary(model))
const ids = []
let logits = forward(start)
const before = performance.now()
while (ids.length < Number(count)) {
  ids.push(choose(logits))
  logits = forward([ids.at(-1)])
}
const seconds = (performance.now() - before) / 1000
console.log(JSON.stringify({ ids, text: tokenizer.decode(ids), kernels: core.kernels(model), seconds }))
