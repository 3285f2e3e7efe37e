// Runs the model away from the page, which stays responsive: a message for each thing asked, messages for what comes of it.
import { load } from './onebit.js'

let model
let stopping

const asked = {
  async load ({ url }) {
    model = await load(url, { onProgress: (progress) => postMessage({ kind: 'progress', ...progress }) })
    const { contextLength, fileBytes, chatStrings } = model
    postMessage({ kind: 'loaded', contextLength, fileBytes, isChat: chatStrings !== null, hasSystem: chatStrings?.hasSystem ?? true })
  },

  async chat ({ messages, options }) {
    stopping = new AbortController()
    const answer = model.chat(messages, { ...options, signal: stopping.signal })
    for await (const text of answer) postMessage({ kind: 'text', text })
    postMessage({ kind: 'done', stats: answer.stats })
  },

  stop () { stopping?.abort() }
}

onmessage = async ({ data: { kind, ...given } }) => {
  try {
    await asked[kind](given)
  } catch (error) {
    postMessage({ kind: 'failed', message: error.message })
  }
}
