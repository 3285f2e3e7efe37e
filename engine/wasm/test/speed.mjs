// node speed.mjs onebit.wasm MODEL.1bit [TOKENS]: tokens/s of a prompt taken at once and of decoding, best of three, as JSON.
import { readFileSync } from 'node:fs'
import { open } from './core.mjs'

const [wasm, path, length = '128'] = process.argv.slice(2)
const core = open(wasm)
const model = core.model(readFileSync(path), core.isaFromName('auto'))
const prompt = Array.from({ length: Number(length) }, (_, i) => (i * 7) % core.vocabulary(model))
const best = { prefill: 0, decode: 0 }
for (let round = 0; round < 3; round++) {
  const together = core.runner(model, core.session(model, 2 * prompt.length, 32), prompt.length)
  let before = performance.now()
  together(prompt)
  best.prefill = Math.max(best.prefill, 1000 * prompt.length / (performance.now() - before))
  before = performance.now()
  for (const token of prompt) together([token])
  best.decode = Math.max(best.decode, 1000 * prompt.length / (performance.now() - before))
}
console.log(JSON.stringify(best))
