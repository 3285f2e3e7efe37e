// The messages of a conversation as they are shown.
import { markdown } from './markdown.js'

const NAMES = { user: 'You', assistant: 'Model' }
const ENDS = { length: 'the longest answer was reached', context: 'the context is full', abort: 'stopped' }

function button (text, label, act) {
  const node = document.createElement('button')
  node.type = 'button'
  node.textContent = text
  node.setAttribute('aria-label', label)
  node.addEventListener('click', () => act(node))
  return node
}

function copyButton (label, text) {
  return button('Copy', label, async (node) => {
    try {
      await navigator.clipboard.writeText(text())
      node.textContent = 'Copied'
    } catch {
      node.textContent = 'Not allowed'
    }
    setTimeout(() => { node.textContent = 'Copy' }, 1500)
  })
}

function describe (stats) {
  if (!stats) return ''
  const parts = [`${stats.newTokens} tokens`]
  if (stats.tokensPerSecond) parts.push(`${stats.tokensPerSecond.toFixed(stats.tokensPerSecond < 10 ? 1 : 0)} tokens/s`)
  if (ENDS[stats.stoppedBy]) parts.push(ENDS[stats.stoppedBy])
  if (stats.droppedMessages) parts.push(`the ${stats.droppedMessages} oldest messages did not fit`)
  return parts.join(' · ')
}

/** One message; `show` renders what it holds now. */
class Entry {
  constructor (message, thread) {
    this.message = message
    this.thread = thread
    this.node = document.createElement('article')
    this.node.className = message.role
    this.node.setAttribute('aria-label', NAMES[message.role])
    this.body = this.node.appendChild(document.createElement('div'))
    this.body.className = 'body'
    const foot = this.node.appendChild(document.createElement('footer'))
    this.figures = foot.appendChild(document.createElement('span'))
    foot.append(copyButton(`Copy this message of ${NAMES[message.role]}`, () => this.message.content))
    if (message.role === 'assistant') {
      this.again = foot.appendChild(button('Again', 'Answer again', thread.regenerate))
    }
    this.show()
  }

  show () {
    const { content, role, stats, problem } = this.message
    const isPlain = role === 'user' || this.thread.isPlain
    this.body.classList.toggle('plain', isPlain)
    this.body.replaceChildren(...(isPlain ? [document.createTextNode(content)] : this.#rendered(content)))
    if (problem) this.body.append(Object.assign(document.createElement('p'), { className: 'problem', textContent: problem }))
    this.figures.textContent = describe(stats)
  }

  #rendered (content) {
    let nodes
    try {
      nodes = markdown(content)
    } catch { // nested deeper than a page can be
      nodes = [document.createTextNode(content)]
    }
    for (const figure of nodes.flatMap((node) => [node, ...node.querySelectorAll?.('figure.code') ?? []]).filter((node) => node.matches?.('figure.code'))) {
      figure.querySelector('figcaption').append(copyButton('Copy this code', () => figure.querySelector('code').textContent))
    }
    return nodes
  }
}

export class Thread {
  constructor (node, regenerate) {
    this.node = node
    this.regenerate = regenerate
    this.isPlain = false // a model without a chat template writes no Markdown
    this.entries = []
  }

  /** Shows all messages. */
  show (messages) {
    this.entries = messages.map((message) => new Entry(message, this))
    this.node.replaceChildren(...this.entries.map(({ node }) => node))
    this.#markLast()
    this.node.scrollTop = this.node.scrollHeight
  }

  add (message) {
    const entry = new Entry(message, this)
    this.entries.push(entry)
    this.node.append(entry.node)
    this.#markLast()
    this.node.scrollTop = this.node.scrollHeight
    return entry
  }

  /** Renders an answer as it grows, at most once a frame; what is read is left in place unless the end is in view. */
  follow (entry) {
    if (this.frame) return
    this.frame = requestAnimationFrame(() => {
      this.frame = 0
      const { scrollHeight, scrollTop, clientHeight } = this.node
      entry.show()
      if (scrollHeight - scrollTop - clientHeight < 80) this.node.scrollTop = this.node.scrollHeight
    })
  }

  /** Ends what `follow` began. */
  finish (entry) {
    cancelAnimationFrame(this.frame)
    this.frame = 0
    entry.show()
    this.#markLast()
  }

  #markLast () {
    this.entries.forEach((entry, i) => { if (entry.again) entry.again.hidden = i !== this.entries.length - 1 })
  }
}
