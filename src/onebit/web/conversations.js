// Conversations, kept in this browser alone (localStorage; in memory where that is forbidden).

const KEY = `onebit.conversations:${location.pathname}`
const TITLE_LENGTH = 48

/** A conversation: { id, title, system, messages: [{ role, content, stats? }], changed }. */
export class Conversations {
  constructor (storage = window.localStorage) {
    this.storage = storage
    this.all = this.#read()
    this.current = this.all[0] ?? this.begin()
  }

  #read () {
    try {
      const stored = JSON.parse(this.storage.getItem(KEY) ?? '[]')
      return Array.isArray(stored) ? stored.filter((one) => Array.isArray(one?.messages)) : []
    } catch {
      return []
    }
  }

  /** Keeps what there is to keep; the oldest go where the browser has no room. */
  save () {
    this.current.changed = Date.now()
    this.all.sort((a, b) => b.changed - a.changed)
    const kept = this.all.filter(({ messages }) => messages.length)
    for (; ;) {
      try {
        this.storage.setItem(KEY, JSON.stringify(kept))
        return
      } catch {
        if (kept.length < 2) return
        kept.pop()
      }
    }
  }

  /** A new conversation, which becomes the current one; an empty one is used again. */
  begin (system = '') {
    let fresh = this.all.find(({ messages }) => !messages.length)
    if (!fresh) {
      fresh = { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: '', system, messages: [], changed: Date.now() }
      this.all.unshift(fresh)
    }
    this.current = fresh
    return fresh
  }

  open (id) {
    this.current = this.all.find((one) => one.id === id) ?? this.current
  }

  remove (id) {
    this.all = this.all.filter((one) => one.id !== id)
    if (this.current.id === id) this.current = this.all[0] ?? this.begin()
    this.save()
  }

  add (role, content) {
    const message = { role, content }
    this.current.messages.push(message)
    if (role === 'user' && !this.current.title) this.current.title = content.trim().split('\n')[0].slice(0, TITLE_LENGTH)
    this.save()
    return message
  }

  /** What a transport is sent. */
  prompt () {
    const { system, messages } = this.current
    const turns = messages.map(({ role, content }) => ({ role, content }))
    return system ? [{ role: 'system', content: system }, ...turns] : turns
  }
}
