// node c_test.mjs TEST.wasm: runs the main() of one of engine/tests, built with libc/; its output, and its result as exit code.
import { readFileSync } from 'node:fs'

const TEXT = new TextDecoder()
let view

function string (at) {
  const memory = new Uint8Array(view().buffer, at)
  return TEXT.decode(memory.slice(0, memory.indexOf(0)))
}

// C's variable arguments lie in memory one after another, each aligned to its size.
function format (text, at) {
  function next (size, read) {
    at = (at + size - 1) & -size
    const value = view()[read](at, true)
    at += size
    return value
  }
  return string(text).replace(/%[-0]*\d*(?:\.(\d+))?(ll|z|h)?([%sdiuxcfeg])/g, (_, digits, length, kind) => {
    if (kind === '%') return '%'
    if (kind === 's') return string(next(4, 'getUint32'))
    if (kind === 'c') return String.fromCharCode(next(4, 'getUint32'))
    if ('feg'.includes(kind)) {
      const value = next(8, 'getFloat64')
      return kind === 'f' ? value.toFixed(digits ?? 6) : kind === 'e' ? value.toExponential(digits ?? 6) : String(value)
    }
    const signed = kind === 'd' || kind === 'i' ? 'Int' : 'Uint'
    const value = length === 'll' ? next(8, `getBig${signed}64`) : next(4, `get${signed}32`)
    return value.toString(kind === 'x' ? 16 : 10)
  })
}

const libc = {
  printf: (text, values) => process.stdout.write(format(text, values)) && 0,
  fprintf: (file, text, values) => process.stderr.write(format(text, values)) && 0,
  fputc: (character) => process.stderr.write(String.fromCharCode(character)) && character,
  snprintf: (to, bytes, text, values) => {
    const data = new TextEncoder().encode(format(text, values))
    const memory = new Uint8Array(view().buffer, to, bytes)
    memory.set(data.subarray(0, bytes - 1))
    if (bytes) memory[Math.min(data.length, bytes - 1)] = 0
    return data.length
  },
  abort: () => { throw new Error('abort()') },
  fmax: Math.max,
  fmin: Math.min,
  ldexp: (x, power) => x * 2 ** power
}
const module = new WebAssembly.Module(readFileSync(process.argv[2]))
const env = Object.fromEntries(WebAssembly.Module.imports(module).map(({ name }) => {
  if (!(libc[name] ?? Math[name])) throw new Error(`libc/ has no ${name}`)
  return [name, libc[name] ?? Math[name]]
}))
const { exports } = new WebAssembly.Instance(module, { env })
view = () => new DataView(exports.memory.buffer)
process.exitCode = exports.main(0, 0)
