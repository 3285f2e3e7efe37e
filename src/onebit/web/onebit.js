/* Runs onebit models in a browser, a worker or Node.js. onebit.d.ts describes what is exported.
 *
 *     import { load } from './onebit.js'
 *     const model = await load('model.1bit', { onProgress: ({ loaded, total }) => ... })
 *     for await (const piece of model.generate('Once upon a time', { maxNewTokens: 100 })) show(piece)
 *
 * The engine is the C core compiled to WebAssembly: onebit-relaxed.wasm where the browser has relaxed SIMD, else onebit.wasm,
 * both beside this file. A page should load a model in a worker: computing a token holds its thread. */

import { fit, longestToken, render, runningText } from './chat-text.js'
import { hasRelaxedSimd, loadCore, placeImage } from './core.js'
import { Generation } from './generation.js'

export { Generation, hasRelaxedSimd }

const NO_TOKEN = 0xffffffff
const LOGITS_NONE = 0
const LOGITS_LAST = 1
const PREFILL_STEP = 32 // tokens of a prompt between two looks at the signal
const REPETITION_WINDOW = 64
const CHAT_STRINGS = [
  'opening', 'systemPrefix', 'systemSuffix', 'userPrefix', 'userSuffix', 'assistantPrefix', 'assistantSuffix', 'generationPrefix']
const SAMPLING = { temperature: 0, topP: 1, minP: 0, repetitionPenalty: 1, topK: 0, seed: 0 }

const decoder = new TextDecoder()
const encoder = new TextEncoder()

/** Loads a .1bit file from a URL or from bytes. */
export async function load (source, options = {}) {
  const core = await loadCore(options.wasm)
  const [image, size] = await placeImage(core, source, options)
  const { ob, error, out } = core
  core.check(ob.ob_model_arena_bytes(image, BigInt(size), out, error))
  const bytes = core.word()
  core.check(ob.ob_model_init(image, BigInt(size), 0, core.take(bytes), bytes, out, error))
  return new Model(core, core.word(), size, options.contextLength)
}

/** A model and its one session. */
export class Model {
  #core; #model; #session; #tokenizerAt; #logits; #held = []

  constructor (core, model, fileBytes, contextLength = 0) {
    this.#core = core
    this.#model = model
    this.fileBytes = fileBytes
    core.ob.ob_model_describe(model, this.#briefTake(128))
    const description = core.words(core.end, 20)
    this.vocabularySize = description[0]
    this.bos = description[16] === NO_TOKEN ? null : description[16]
    this.eos = description[17] === NO_TOKEN ? null : description[17]
    this.contextLength = this.#open(Math.min(contextLength || description[7], description[7]))
    this.#logits = core.take(4 * this.vocabularySize)
    this.chatStrings = this.#readChatStrings()
    const section = this.#section('TOKBIN')
    this.#tokenizerAt = section ? core.take(256) : 0
    if (section) core.check(core.ob.ob_tokenizer_open(this.#tokenizerAt, section.at, section.size, core.error))
  }

  get #tokenizer () {
    if (!this.#tokenizerAt) throw new Error('the file has no tokenizer for the engine; export it again with one')
    return this.#tokenizerAt
  }

  #briefTake (bytes) {
    const at = this.#core.take(bytes)
    this.#core.end = at
    return at
  }

  /** A session as long as wanted, or as memory allows. */
  #open (positions) {
    const core = this.#core
    const options = core.take(64)
    for (; ; positions >>= 1) {
      core.words(options, 7).set([positions, PREFILL_STEP, 0, 0, 0, 0, 0])
      core.check(core.ob.ob_session_arena_bytes(this.#model, options, core.out, core.error))
      if (core.fits(core.word()) || positions < 256) break
    }
    const bytes = core.word()
    core.check(core.ob.ob_session_init(this.#model, options, core.take(bytes), bytes, core.out, core.error))
    this.#session = core.word()
    return positions
  }

  #section (id) {
    const core = this.#core
    return core.briefly(() => {
      const at = core.ob.ob_model_section(this.#model, core.place(encoder.encode(id + '\0')), core.out) >>> 0
      return at ? { at, size: core.word() } : null
    })
  }

  #readChatStrings () {
    const section = this.#section('CHATSTR')
    if (!section) return null
    const [version, flags, count] = this.#core.words(section.at, 3)
    if (version !== 1 || count !== CHAT_STRINGS.length) throw new Error('the chat strings are of another version; use a newer onebit.js')
    const strings = { stripsContent: Boolean(flags & 1), hasSystem: Boolean(flags & 2) }
    CHAT_STRINGS.forEach((name, i) => {
      const [offset, size] = this.#core.words(section.at + 16 + 8 * i, 2)
      strings[name] = decoder.decode(this.#core.bytes(section.at + offset, size))
    })
    return strings
  }

  /** What the engine chose to compute each operation with, one line each. */
  get kernels () {
    const lines = []
    for (let i = 0; this.#core.ob.ob_model_kernel(this.#model, i, this.#briefTake(128)); i++) lines.push(this.#core.string(this.#core.end))
    return lines
  }

  /** Token ids of a text, without the token that starts one. */
  encode (text) {
    const core = this.#core
    const data = encoder.encode(text)
    return core.briefly(() => {
      const most = core.ob.ob_tokenizer_max_tokens(this.#tokenizer, data.length) >>> 0
      const arena = core.ob.ob_tokenizer_arena_bytes(this.#tokenizer, data.length) >>> 0
      const ids = core.take(4 * most)
      const status = core.ob.ob_tokenizer_encode(
        this.#tokenizer, core.place(data), data.length, 0, ids, most, core.out, core.take(arena), arena, core.error)
      core.check(status)
      return [...core.words(ids, core.word())]
    })
  }

  /** The bytes of one token; none for control tokens. */
  tokenBytes (id, isFirst = false) {
    const { ob, out } = this.#core
    if (ob.ob_tokenizer_is_special(this.#tokenizer, id)) return new Uint8Array(0)
    const at = ob.ob_tokenizer_token(this.#tokenizer, id, isFirst ? 1 : 0, out) >>> 0
    return this.#core.bytes(at, this.#core.word()).slice()
  }

  /** The token with this text, or null. */
  findToken (text) {
    const data = encoder.encode(text)
    const id = this.#core.briefly(() => this.#core.ob.ob_tokenizer_find(this.#tokenizer, this.#core.place(data), data.length)) >>> 0
    return id === NO_TOKEN ? null : id
  }

  /** Makes the session hold `ids` from the start, keeping what it shares with what it held; looks at `pause` between steps. */
  async hold (ids, pause) {
    let shared = 0
    while (shared < Math.min(this.#held.length, ids.length - 1) && this.#held[shared] === ids[shared]) shared++
    this.#core.check(this.#core.ob.ob_session_truncate(this.#session, shared, this.#core.error))
    this.#held.length = shared
    for (let from = shared; from < ids.length; from += PREFILL_STEP) {
      if (await pause()) return false
      const part = ids.slice(from, from + PREFILL_STEP)
      this.forward(part, from + part.length === ids.length)
    }
    return true
  }

  /** Appends tokens to what the session holds; the last one's logits are what `sample` reads. */
  forward (ids, wantsLogits = true) {
    const core = this.#core
    core.briefly(() => {
      const at = core.take(4 * ids.length)
      core.words(at, ids.length).set(ids)
      core.check(core.ob.ob_forward(
        this.#session, at, ids.length, wantsLogits ? LOGITS_LAST : LOGITS_NONE, this.#logits, core.error))
    })
    this.#held.push(...ids)
  }

  /** The logits of the last token held, a copy. */
  get logits () { return this.#core.floats(this.#logits, this.vocabularySize).slice() }

  /** How many tokens the session holds. */
  get position () { return this.#held.length }

  /** A function that chooses tokens from the last logits; everything it needs is freed with `core.end`. */
  sampler (options) {
    const core = this.#core
    const { temperature, topP, minP, repetitionPenalty, topK, seed } = { ...SAMPLING, ...options }
    const at = core.take(64)
    const given = core.take(64)
    core.floats(given, 4).set([temperature, topP, minP, repetitionPenalty])
    core.words(given + 16, 2).set([topK, 0])
    new BigUint64Array(core.ob.memory.buffer, given + 24, 1)[0] = BigInt(seed)
    core.check(core.ob.ob_sampler_init(at, given, core.error))
    const size = core.ob.ob_sampler_arena_bytes(this.vocabularySize) >>> 0
    const arena = core.take(size)
    const recent = core.take(4 * REPETITION_WINDOW)
    return () => {
      const seen = repetitionPenalty === 1 ? [] : this.#held.slice(-REPETITION_WINDOW)
      core.words(recent, seen.length).set(seen)
      core.check(core.ob.ob_sample(at, this.#logits, this.vocabularySize, recent, seen.length, arena, size, core.out, core.error))
      return core.word()
    }
  }

  /** Continues a prompt: text (with the token that starts one) or token ids. */
  generate (prompt, options = {}) {
    const ids = typeof prompt === 'string' ? this.#begin(prompt) : [...prompt]
    return new Generation(this, this.#core, ids, options)
  }

  /** Answers the last of `messages`; the oldest turns are left out where the context is too short for all. */
  chat (messages, options = {}) {
    const { ids, dropped } = fit(this, messages, options.maxNewTokens ?? 256)
    const end = this.chatStrings?.assistantSuffix.trimStart()
    const stop = end ? [...(options.stop ?? []), end] : options.stop
    const stopToken = end ? longestToken(this, end) : null
    return new Generation(this, this.#core, ids, { ...options, stop, stopToken }, dropped)
  }

  #begin (text) {
    const ids = this.encode(text)
    if (this.bos !== null) return ids[0] === this.bos ? ids : [this.bos, ...ids]
    return ids.length ? ids : this.encode('\n')
  }

  /** The tokens of a conversation, which asks for an answer. */
  encodeChat (messages) {
    return this.chatStrings ? this.encode(render(this.chatStrings, messages)) : this.#begin(runningText(messages))
  }
}
