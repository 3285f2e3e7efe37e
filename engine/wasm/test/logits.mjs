// node logits.mjs onebit.wasm JOBS.json: for each job {model, isa, tokens, out} writes the float32 logits of all tokens to
// out: one session with every token at once, then one that takes them one by one.
import { readFileSync, writeFileSync } from 'node:fs'
import { open } from './core.mjs'

const [wasm, jobs] = process.argv.slice(2)
for (const { model: path, isa, tokens, out } of JSON.parse(readFileSync(jobs))) {
  const core = open(wasm)
  const model = core.model(readFileSync(path), core.isaFromName(isa))
  const together = core.runner(model, core.session(model), tokens.length)
  const parts = [Buffer.from(together(tokens, true).slice().buffer)]
  const alone = core.runner(model, core.session(model), 1)
  for (const token of tokens) parts.push(Buffer.from(alone([token]).slice().buffer))
  writeFileSync(out, Buffer.concat(parts))
}
