// Text from a model, piece by piece: no half character, no stop text, the event loop served in between, and figures.

const TURN_MS = 15 // how long the event loop waits for its turn at most

const turn = () => new Promise((resolve) => {
  const { port1, port2 } = new MessageChannel()
  port1.onmessage = () => { port1.close(); resolve() }
  port2.postMessage(0)
})

/** Holds back what may be the beginning of a stop text. */
class StopFilter {
  constructor (stops) {
    this.stops = stops.filter(Boolean)
    this.held = ''
    this.found = false
  }

  push (text) {
    this.held += text
    const places = this.stops.map((stop) => this.held.indexOf(stop)).filter((place) => place >= 0)
    this.found = places.length > 0
    const cut = this.found ? Math.min(...places) : this.held.length - Math.max(0, ...this.stops.map((stop) => this.#overlap(stop)))
    const out = this.held.slice(0, cut)
    this.held = this.found ? '' : this.held.slice(cut)
    return out
  }

  #overlap (stop) {
    for (let n = Math.min(stop.length - 1, this.held.length); n; n--) if (stop.startsWith(this.held.slice(-n))) return n
    return 0
  }
}

/** Pieces of text after a prompt; `stats` and `ids` grow while it runs. */
export class Generation {
  ids = []
  #model; #core; #prompt; #options

  constructor (model, core, prompt, options, dropped = 0) {
    if (!prompt.length) throw new Error('the prompt is empty and the model has no token that begins a text')
    if (prompt.length > model.contextLength) {
      throw new Error(`the prompt has ${prompt.length} tokens, the context holds ${model.contextLength}: shorten it`)
    }
    this.#model = model
    this.#core = core
    this.#prompt = prompt
    this.#options = options
    this.stats = {
      promptTokens: prompt.length, droppedMessages: dropped, newTokens: 0, prefillSeconds: 0, decodeSeconds: 0, tokensPerSecond: 0,
      contextUsed: 0, contextLength: model.contextLength, stoppedBy: null
    }
  }

  async * [Symbol.asyncIterator] () {
    const { end } = this.#core
    try {
      yield * this.#pieces(this.#model.sampler(this.#options))
    } finally {
      this.stats.stoppedBy ??= 'left'
      this.#core.end = end
    }
  }

  async * #pieces (sample) {
    const { maxNewTokens = 256, stop = [], stopToken = null, signal } = this.#options
    const model = this.#model
    const { stats } = this
    const text = new TextDecoder()
    const filter = new StopFilter([stop].flat())
    let waited = performance.now()
    const pause = async () => {
      if (performance.now() - waited > TURN_MS) {
        await turn()
        waited = performance.now()
      }
      return signal?.aborted
    }
    const begin = performance.now()
    const isReady = await model.hold(this.#prompt, pause)
    stats.prefillSeconds = (performance.now() - begin) / 1000
    if (!isReady) { stats.stoppedBy = 'abort'; return }
    let from = performance.now()
    while (!stats.stoppedBy) {
      const id = sample()
      this.ids.push(id)
      stats.newTokens++
      stats.contextUsed = model.position
      const isEnd = id === model.eos || id === stopToken
      let piece = isEnd ? '' : filter.push(text.decode(model.tokenBytes(id), { stream: true }))
      if (isEnd) stats.stoppedBy = 'eos'
      else if (filter.found) stats.stoppedBy = 'stop'
      else if (stats.newTokens >= maxNewTokens) stats.stoppedBy = 'length'
      else if (model.position >= model.contextLength) stats.stoppedBy = 'context'
      if (stats.stoppedBy && !filter.found) piece += filter.push(text.decode()) + filter.held
      if (!stats.stoppedBy) model.forward([id])
      stats.decodeSeconds += (performance.now() - from) / 1000
      stats.tokensPerSecond = stats.newTokens > 1 ? (stats.newTokens - 1) / stats.decodeSeconds : 0
      if (piece) yield piece
      if (!stats.stoppedBy && await pause()) {
        stats.stoppedBy = 'abort'
        if (filter.held) yield filter.held
      }
      from = performance.now()
    }
  }
}
