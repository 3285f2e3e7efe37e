// The page's model in this browser: onebit.js in a worker. See transport.d.ts for what a transport is.

export async function open ({ model }, onProgress) {
  const worker = new Worker(new URL('./worker.js', import.meta.url), { type: 'module' })
  let hear // what to do with the next messages

  function ask (question, on) {
    return new Promise((resolve, reject) => {
      hear = (message) => {
        if (message.kind === 'failed') reject(new Error(message.message))
        else on(message, resolve)
      }
      worker.onerror = (event) => reject(new Error(event.message || 'the worker cannot be started'))
      worker.postMessage(question)
    })
  }
  worker.onmessage = ({ data }) => hear?.(data)

  const url = new URL(model, document.baseURI).href
  const about = await ask({ kind: 'load', url }, (message, resolve) => {
    if (message.kind === 'progress') onProgress(message)
    if (message.kind === 'loaded') resolve(message)
  })
  return {
    ...about,
    chat (messages, options, { signal, onText }) {
      signal.addEventListener('abort', () => worker.postMessage({ kind: 'stop' }), { once: true })
      return ask({ kind: 'chat', messages, options }, (message, resolve) => {
        if (message.kind === 'text') onText(message.text)
        if (message.kind === 'done') resolve(message.stats)
      })
    }
  }
}
