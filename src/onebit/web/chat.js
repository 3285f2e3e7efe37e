// The chat page. page.json says which transport answers, so that one page serves a model in this browser and one on a server.
import { Conversations } from './conversations.js'
import { Settings } from './settings.js'
import { Thread } from './thread.js'

const byId = (id) => document.getElementById(id)
const conversations = new Conversations()
const settings = new Settings()
const thread = new Thread(byId('thread'), () => answerAgain())
let transport = null
let stopping = null // the AbortController of the answer that is being written

/* ---- what is said to the reader ---- */

const say = (text) => { byId('status').textContent = text }
const megabytes = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`

function showProgress ({ loaded, total }) {
  const bar = byId('loading-bar')
  if (total) Object.assign(bar, { max: total, value: loaded })
  byId('loading-text').textContent = `Loading the model: ${megabytes(loaded)}${total ? ` of ${megabytes(total)}` : ''}`
}

function showContext ({ contextUsed, contextLength } = {}) {
  byId('context').hidden = !contextLength
  if (!contextLength) return
  Object.assign(byId('context-meter'), { max: contextLength, high: 0.8 * contextLength, value: contextUsed ?? 0 })
  byId('context-text').textContent = `${contextUsed ?? 0} of ${contextLength} tokens`
}

function showBusy () {
  byId('send').disabled = !transport || stopping !== null
  byId('send').hidden = stopping !== null
  byId('stop').hidden = stopping === null
}

/* ---- the list of conversations ---- */

function showList () {
  const items = conversations.all.filter(({ messages }) => messages.length).map((one) => {
    const item = document.createElement('li')
    const open = Object.assign(document.createElement('button'), { type: 'button', className: 'open', textContent: one.title || 'Untitled' })
    if (one === conversations.current) open.setAttribute('aria-current', 'true')
    open.addEventListener('click', () => go(() => conversations.open(one.id)))
    const remove = Object.assign(document.createElement('button'), { type: 'button', className: 'icon', textContent: '×' })
    remove.setAttribute('aria-label', `Delete “${open.textContent}”`)
    remove.addEventListener('click', () => {
      go(() => conversations.remove(one.id))
      byId('new').focus()
    })
    item.append(open, remove)
    return item
  })
  byId('conversations').replaceChildren(...items)
}

function showConversation () {
  const { messages } = conversations.current
  thread.show(messages)
  const last = messages.findLast(({ stats }) => stats)
  showContext(last?.stats ?? { contextLength: transport?.contextLength })
  showList()
}

/** Leaves this conversation for another; an answer that is being written ends where it is. */
function go (change) {
  stopping?.abort()
  change()
  showConversation()
  showDrawer(false)
  byId('message').focus()
}

function showDrawer (isOpen) {
  document.body.classList.toggle('drawer', isOpen)
  byId('show-list').setAttribute('aria-expanded', String(isOpen))
}

/* ---- asking and answering ---- */

async function answer () {
  const conversation = conversations.current
  const messages = conversations.prompt()
  const entry = thread.add(conversations.add('assistant', ''))
  const { message } = entry
  const here = new AbortController()
  stopping = here
  entry.node.setAttribute('aria-busy', 'true')
  showBusy()
  say('The model is answering.')
  try {
    const onText = (text) => {
      message.content += text
      thread.follow(entry)
    }
    message.stats = await transport.chat(messages, settings.sampling(), { signal: here.signal, onText })
  } catch (error) {
    message.problem = error.message
  }
  stopping = null
  entry.node.removeAttribute('aria-busy')
  thread.finish(entry)
  conversations.save()
  showBusy()
  if (conversations.current !== conversation) return
  showContext(message.stats)
  showList()
  say(message.problem ?? (message.stats.stoppedBy === 'abort' ? 'Stopped.' : 'The answer is complete.'))
}

function send () {
  const field = byId('message')
  if (!field.value.trim() || !transport || stopping) return
  thread.add(conversations.add('user', field.value))
  field.value = ''
  fitField()
  showList()
  return answer()
}

function answerAgain () {
  const { messages } = conversations.current
  if (!transport || stopping || messages.at(-1)?.role !== 'assistant') return
  messages.pop()
  thread.show(messages)
  byId('message').focus()
  return answer()
}

function fitField () {
  const field = byId('message')
  field.rows = 1
  while (field.scrollHeight > field.clientHeight && field.rows < 10) field.rows++
}

/* ---- what a reader can do ---- */

byId('composer').addEventListener('submit', (event) => {
  event.preventDefault()
  send()
})
byId('message').addEventListener('input', fitField)
byId('message').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
  event.preventDefault()
  send()
})
byId('stop').addEventListener('click', () => {
  stopping?.abort()
  byId('message').focus()
})
byId('new').addEventListener('click', () => go(() => conversations.begin(conversations.current.system)))
byId('show-list').addEventListener('click', () => {
  const isOpen = !document.body.classList.contains('drawer')
  showDrawer(isOpen)
  if (isOpen) byId('new').focus()
})
byId('show-settings').addEventListener('click', () => {
  settings.open(conversations.current, transport?.hasSystem ?? true, () => conversations.save())
})
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || byId('settings').open) return
  stopping?.abort()
  showDrawer(false)
})
addEventListener('pagehide', () => conversations.save())

async function start () {
  showConversation()
  const response = await fetch('page.json')
  if (!response.ok) throw new Error(`page.json: HTTP ${response.status}`)
  const page = await response.json()
  byId('title').textContent = document.title = page.title
  const { open } = await import(`./${page.transport}-transport.js`)
  transport = await open(page, showProgress)
  byId('loading').hidden = true
  thread.isPlain = !transport.isChat
  if (!transport.isChat) byId('message').placeholder = 'Write the beginning of a text'
  showConversation()
  showBusy()
  say(transport.isChat ? 'The model is ready.' : 'The model is ready. It has no chat template: it continues what you write.')
}

start().catch((error) => {
  byId('loading-text').textContent = `The model cannot be loaded: ${error.message}`
  byId('loading').classList.add('problem')
  byId('loading-bar').hidden = true
  say(byId('loading-text').textContent)
})
