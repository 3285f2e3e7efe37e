// Conversations as the text that a model reads: by the strings compiled from its chat template, or one after another.

/** The longest beginning of a text that is one token, or null. */
export function longestToken (model, text) {
  for (let n = text.length; n; n--) {
    const id = model.findToken(text.slice(0, n))
    if (id !== null) return id
  }
  return null
}

/** A conversation as the model's chat template writes it. */
export function render (strings, messages) {
  const parts = messages[0]?.role === 'system' ? [] : [strings.opening]
  messages.forEach(({ role, content }, i) => {
    const isKnown = role === 'user' || role === 'assistant' || (role === 'system' && !i && strings.hasSystem)
    if (!isKnown) throw new Error(`a message of role '${role}' cannot stand at place ${i} with this model's chat template`)
    parts.push(strings[role + 'Prefix'], strings.stripsContent ? content.trim() : content, strings[role + 'Suffix'])
  })
  return parts.join('') + strings.generationPrefix
}

/** A model without a chat template continues what was said so far; a message after an answer begins a line. */
export function runningText (messages) {
  let text = ''
  for (const { role, content } of messages) {
    if (role !== 'assistant' && text && !text.endsWith('\n')) text += '\n'
    text += content
    if (role === 'system') text += '\n'
  }
  return text
}

/** Token ids of a conversation that leave room for `reserve` more, and how many of the oldest messages that took. */
export function fit (model, messages, reserve) {
  const room = model.contextLength - Math.min(reserve, model.contextLength >> 1)
  const isSystem = messages[0]?.role === 'system' && (model.chatStrings?.hasSystem ?? true)
  const system = isSystem ? messages.slice(0, 1) : []
  let turns = messages.filter(({ role }) => role !== 'system')
  let dropped = 0
  let ids = model.encodeChat([...system, ...turns])
  while (ids.length > room && turns.length > 1) {
    const next = turns.findIndex(({ role }, i) => i && role === 'user')
    const gone = next < 0 ? turns.length - 1 : next
    dropped += gone
    turns = turns.slice(gone)
    ids = model.encodeChat([...system, ...turns])
  }
  return ids.length > room ? { ids: ids.slice(-room), dropped: dropped + 1 } : { ids, dropped }
}
