// The core's functions over one linear memory, as the tests need them: no browser, no threads, errors as exceptions.
import { readFileSync } from 'node:fs'

const TEXT = new TextDecoder()
const BYTES = new TextEncoder()
const OB_LOGITS_LAST = 1
const OB_LOGITS_ALL = 2

export function open (wasmPath) {
  const { exports: ob } = new WebAssembly.Instance(new WebAssembly.Module(readFileSync(wasmPath)))
  let end = (ob.__heap_base.value + 63) & ~63

  function allocate (bytes) {
    const at = end
    end = (end + bytes + 63) & ~63
    const missing = end - ob.memory.buffer.byteLength
    if (missing > 0) ob.memory.grow((missing + 65535) >> 16)
    return at
  }
  const error = allocate(256)
  const scratch = allocate(256)
  const bytes = (at, size) => new Uint8Array(ob.memory.buffer, at, size)
  const words = (at, count) => new Uint32Array(ob.memory.buffer, at, count)
  function string (at) {
    const memory = bytes(at, 256)
    return TEXT.decode(memory.slice(0, memory.indexOf(0)))
  }
  function place (data) {
    const at = allocate(data.length)
    bytes(at, data.length).set(data)
    return at
  }
  function check (status) {
    if (status) throw new Error(string(error + 4))
  }
  const pointer = () => words(scratch, 1)[0]

  function model (image, isa) {
    const at = place(image)
    const options = place(new Uint8Array(64))
    words(options, 1)[0] = isa
    check(ob.ob_model_arena_bytes(at, BigInt(image.length), scratch, error))
    const size = pointer()
    check(ob.ob_model_init(at, BigInt(image.length), options, allocate(size), size, scratch, error))
    return pointer()
  }

  function session (model, maxPositions = 0, maxBatch = 0) {
    const options = place(new Uint8Array(64))
    words(options, 2).set([maxPositions, maxBatch])
    check(ob.ob_session_arena_bytes(model, options, scratch, error))
    const size = pointer()
    check(ob.ob_session_init(model, options, allocate(size), size, scratch, error))
    return pointer()
  }

  function kernels (model) {
    const lines = []
    for (let i = 0; ob.ob_model_kernel(model, i, scratch); i++) lines.push(string(scratch))
    return lines
  }

  function vocabulary (model) {
    ob.ob_model_describe(model, scratch)
    return words(scratch, 1)[0]
  }

  // The token that starts a text, if the file has one, as a list.
  function bos (model) {
    ob.ob_model_describe(model, scratch)
    const token = words(scratch, 17)[16]
    return token === 0xffffffff ? [] : [token]
  }

  // forward(tokens, all) -> Float32Array, which the next call overwrites
  function runner (model, session, maxTokens) {
    const vocab = vocabulary(model)
    const logits = allocate(4 * vocab * maxTokens)
    const ids = allocate(4 * maxTokens)
    return (tokens, all = false) => {
      words(ids, tokens.length).set(tokens)
      check(ob.ob_forward(session, ids, tokens.length, all ? OB_LOGITS_ALL : OB_LOGITS_LAST, logits, error))
      return new Float32Array(ob.memory.buffer, logits, vocab * (all ? tokens.length : 1))
    }
  }

  function sampler (vocab, temperature = 0) {
    const at = allocate(64)
    const options = new Float32Array([temperature, 1, 0, 1, 0, 0, 0, 0]) // ob_sampler_options: everything off, seed 0
    check(ob.ob_sampler_init(at, place(new Uint8Array(options.buffer)), error))
    const size = ob.ob_sampler_arena_bytes(vocab)
    const arena = allocate(size)
    return (logits) => {
      check(ob.ob_sample(at, logits.byteOffset, vocab, 0, 0, arena, size, scratch, error))
      return pointer()
    }
  }

  function tokenizer (model) {
    const size = place(new Uint8Array(64))
    const section = ob.ob_model_section(model, place(BYTES.encode('TOKBIN\0')), size)
    const at = allocate(256)
    check(ob.ob_tokenizer_open(at, section, words(size, 1)[0], error))
    return {
      encode (text) {
        const data = BYTES.encode(text)
        const most = ob.ob_tokenizer_max_tokens(at, data.length)
        const ids = allocate(4 * most)
        const arena = ob.ob_tokenizer_arena_bytes(at, data.length)
        check(ob.ob_tokenizer_encode(at, place(data), data.length, 1, ids, most, scratch, allocate(arena), arena, error))
        return [...words(ids, pointer())]
      },
      decode (ids) {
        const parts = ids.map((id, i) => {
          const from = ob.ob_tokenizer_token(at, id, i === 0 ? 1 : 0, scratch)
          return bytes(from, pointer()).slice()
        })
        return TEXT.decode(Buffer.concat(parts))
      }
    }
  }
  return { ob, model, session, kernels, runner, vocabulary, bos, sampler, tokenizer, isaFromName: (name) => ob.ob_isa_from_name(place(BYTES.encode(name + '\0'))) }
}
