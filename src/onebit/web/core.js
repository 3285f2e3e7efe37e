// The C core in WebAssembly: its memory, its errors, and how a model file gets there.

const MOST_BYTES = 65535 * 65536
// A module that sums 4 products of -2 and 100 in each lane with i32x4.relaxed_dot_i8x16_i7x16_add_s: -800. Node.js 20 has an
// early form of it behind a flag that takes the wrong side for signed.
const RELAXED_DOT = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 127, 3, 2, 1, 0, 7, 5, 1, 1, 102, 0, 0, 10, 23, 1, 21, 0, 65, 126, 253, 15, 65, 228, 0, 253,
  15, 65, 0, 253, 17, 253, 147, 2, 253, 27, 0, 11])

const decoder = new TextDecoder()

/** Whether this engine runs onebit-relaxed.wasm. */
export function hasRelaxedSimd () {
  if (!WebAssembly.validate(RELAXED_DOT)) return false
  return new WebAssembly.Instance(new WebAssembly.Module(RELAXED_DOT)).exports.f() === -800
}

/** The exports of the module and the memory they work on, which is taken from its end and given back in turn. */
export class Core {
  constructor (exports) {
    this.ob = exports
    this.end = (exports.__heap_base.value + 63) & ~63
    this.error = this.take(256)
    this.out = this.take(64)
  }

  /** Memory of the core, aligned to 64 bytes; given back by setting `end` to where it was. */
  take (bytes) {
    const at = this.end
    this.reach(at + bytes)
    this.end = Math.ceil((at + bytes) / 64) * 64
    return at
  }

  /** Whether so much more can be addressed at all. */
  fits (bytes) { return this.end + bytes <= MOST_BYTES }

  /** Makes memory [0, end) usable. */
  reach (end) {
    const missing = end + 64 - this.ob.memory.buffer.byteLength
    if (missing <= 0) return
    if (end > MOST_BYTES) throw new Error(`the model needs ${(end / 1e9).toFixed(1)} GB of memory; WebAssembly has 4 at most`)
    try {
      this.ob.memory.grow(Math.ceil(missing / 65536))
    } catch {
      throw new Error(`the browser gives no more than ${(this.ob.memory.buffer.byteLength / 1e9).toFixed(1)} GB of memory`)
    }
  }

  bytes (at, size) { return new Uint8Array(this.ob.memory.buffer, at, size) }
  words (at, count) { return new Uint32Array(this.ob.memory.buffer, at, count) }
  floats (at, count) { return new Float32Array(this.ob.memory.buffer, at, count) }
  word (index = 0) { return this.words(this.out, 16)[index] }

  place (data) {
    const at = this.take(data.length)
    this.bytes(at, data.length).set(data)
    return at
  }

  string (at) {
    const memory = this.bytes(at, 256)
    return decoder.decode(memory.slice(0, memory.indexOf(0)))
  }

  check (status) {
    if (status) throw new Error(this.string(this.error + 4))
  }

  /** Runs `work`, then frees what it took. */
  briefly (work) {
    const { end } = this
    try {
      return work()
    } finally {
      this.end = end
    }
  }
}

async function readFile (url) {
  const { readFile: read } = await import('node:fs/promises')
  return new Uint8Array(await read(url))
}

async function request (url, signal) {
  const response = await fetch(url, { signal })
  if (!response.ok) throw new Error(`${url}: HTTP ${response.status} ${response.statusText}`.trim())
  return response
}

/** The engine, from the folder `wasm` or the one that this file is in. */
export async function loadCore (wasm) {
  const name = hasRelaxedSimd() ? 'onebit-relaxed.wasm' : 'onebit.wasm'
  const url = new URL(name, wasm ?? import.meta.url)
  const bytes = url.protocol === 'file:' ? await readFile(url) : await (await request(url)).arrayBuffer()
  const { instance } = await WebAssembly.instantiate(bytes)
  return new Core(instance.exports)
}

/** Puts the file at the end of the core's memory as it comes, and returns its size. */
async function download (core, at, response, onProgress) {
  const total = Number(response.headers.get('content-length')) || 0
  if (total) core.reach(at + total)
  const reader = response.body.getReader()
  let loaded = 0
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return loaded
    core.reach(at + loaded + value.length)
    core.bytes(at + loaded, value.length).set(value)
    loaded += value.length
    onProgress?.({ loaded, total: Math.max(total, loaded) })
  }
}

/** Puts a model file, given by URL or as bytes, into the core's memory; returns where it is and its size. */
export async function placeImage (core, source, { onProgress, signal }) {
  if (source instanceof ArrayBuffer || ArrayBuffer.isView(source)) {
    const data = source instanceof ArrayBuffer ? new Uint8Array(source) : new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
    return [core.place(data), data.length]
  }
  const url = new URL(source, globalThis.location?.href ?? import.meta.url)
  if (url.protocol === 'file:') {
    const data = await readFile(url)
    return [core.place(data), data.length]
  }
  const at = core.end
  const size = await download(core, at, await request(url, signal), onProgress)
  core.take(size)
  return [at, size]
}
