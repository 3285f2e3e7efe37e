// node module.mjs < {"wasm", "model", "encode": [...], "chat": [messages...], "generate": [[prompt, options]...], "bytes": path}
// > what onebit.js makes of each, as JSON.
import { readFileSync } from 'node:fs'
import { load } from '../../src/onebit/web/onebit.js'

const asked = JSON.parse(readFileSync(0, 'utf8'))
const out = {}
try {
  const source = asked.bytes ? readFileSync(asked.bytes) : asked.model
  const model = await load(source, { wasm: asked.wasm, contextLength: asked.contextLength })
  Object.assign(out, { contextLength: model.contextLength, kernels: model.kernels })
  out.encode = asked.encode?.map((text) => model.encode(text))
  out.chat = asked.chat?.map((messages) => model.encodeChat(messages))
  out.generate = []
  for (const [prompt, options, stopAfter] of asked.generate ?? []) {
    const stopping = new AbortController()
    const how = { ...options, signal: stopping.signal }
    const answer = Array.isArray(prompt) && typeof prompt[0] === 'object' ? model.chat(prompt, how) : model.generate(prompt, how)
    const pieces = []
    for await (const piece of answer) {
      pieces.push(piece)
      if (pieces.length === stopAfter) stopping.abort()
    }
    out.generate.push({ pieces, ids: answer.ids, stats: answer.stats })
  }
} catch (error) {
  out.error = error.message
}
console.log(JSON.stringify(out))
