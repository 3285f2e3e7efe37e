// The settings dialog: how answers are sampled (kept in this browser), the conversation's system prompt, colours.

const KEY = `onebit.settings:${location.pathname}`

// name, label, attributes of the field, what it is at first, and what it does
const SAMPLING = [
  ['temperature', 'Temperature', { min: 0, max: 5, step: 0.05 }, 0.8, '0: always the most likely token'],
  ['topK', 'Top-k', { min: 0, max: 100000, step: 1 }, 40, 'among the k most likely; 0: all'],
  ['topP', 'Top-p', { min: 0, max: 1, step: 0.01 }, 0.95, 'among the likeliest with this mass; 1: all'],
  ['minP', 'Min-p', { min: 0, max: 1, step: 0.01 }, 0, "drop tokens below this share of the best one's probability"],
  ['repetitionPenalty', 'Repetition penalty', { min: 0.5, max: 3, step: 0.05 }, 1.1, 'above 1: recent tokens less likely'],
  ['maxNewTokens', 'Longest answer', { min: 1, max: 100000, step: 1 }, 512, 'tokens'],
  ['seed', 'Seed', { min: 0, max: 4294967295, step: 1 }, null, 'the same gives the same text; empty: a new one each time']
]

const byId = (id) => document.getElementById(id)

export class Settings {
  constructor (storage = window.localStorage) {
    this.storage = storage
    this.values = this.#read()
    this.#build()
    this.#applyTheme()
  }

  #read () {
    const values = Object.fromEntries(SAMPLING.map(([name, , , first]) => [name, first]))
    try {
      const stored = JSON.parse(this.storage.getItem(KEY) ?? '{}')
      for (const name of [...Object.keys(values), 'theme']) if (name in stored) values[name] = stored[name]
    } catch {}
    return values
  }

  #save () {
    try {
      this.storage.setItem(KEY, JSON.stringify(this.values))
    } catch {}
  }

  #build () {
    for (const [name, label, limits, , hint] of SAMPLING) {
      const row = byId('sampling').appendChild(document.createElement('div'))
      row.className = 'setting'
      const text = row.appendChild(Object.assign(document.createElement('label'), { htmlFor: `set-${name}`, textContent: label }))
      const field = row.appendChild(Object.assign(document.createElement('input'), { id: `set-${name}`, type: 'number', inputMode: 'decimal' }))
      for (const [key, value] of Object.entries(limits)) field.setAttribute(key, value)
      field.setAttribute('aria-describedby', `hint-${name}`)
      row.appendChild(Object.assign(document.createElement('span'), { id: `hint-${name}`, className: 'note', textContent: hint }))
      text.after(field)
      field.addEventListener('change', () => {
        if (field.checkValidity()) this.values[name] = field.value === '' ? null : Number(field.value)
        else field.value = this.values[name] ?? ''
        this.#save()
      })
    }
    byId('reset').addEventListener('click', () => {
      for (const [name, , , first] of SAMPLING) this.values[name] = first
      this.#save()
      this.#show()
    })
    byId('theme').addEventListener('change', ({ target }) => {
      this.values.theme = target.value
      this.#save()
      this.#applyTheme()
    })
  }

  #show () {
    for (const [name] of SAMPLING) byId(`set-${name}`).value = this.values[name] ?? ''
    byId('theme').value = this.values.theme ?? ''
  }

  #applyTheme () {
    document.documentElement.dataset.theme = this.values.theme ?? ''
  }

  /** Opens the dialog for a conversation; calls `changed` when it is closed. */
  open (conversation, hasSystem, changed) {
    this.#show()
    const system = byId('system')
    system.value = conversation.system ?? ''
    system.disabled = !hasSystem
    system.placeholder = hasSystem ? '' : "The model's chat template knows none"
    const dialog = byId('settings')
    dialog.addEventListener('close', () => {
      conversation.system = system.value.trim()
      changed()
    }, { once: true })
    dialog.showModal()
  }

  /** Options of a transport's chat. */
  sampling () {
    const { theme, seed, ...options } = this.values
    for (const [name, , , first] of SAMPLING) options[name] ??= first
    return { ...options, seed: seed ?? crypto.getRandomValues(new Uint32Array(1))[0] }
  }
}
