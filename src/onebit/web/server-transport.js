// The chat page's answers from a server with OpenAI's interface, the one that the page came from.

const KEY = 'onebit-api-key' // kept while the tab is open

async function problemOf (response) {
  const told = await response.json().catch(() => null)
  return new Error(told?.error?.message ?? `the server answered ${response.status}`)
}

/** Lines of a stream of server-sent events, without their "data: ". */
async function * dataOf (body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader()
  let held = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const lines = (held + value).split('\n')
    held = lines.pop()
    for (const line of lines) if (line.startsWith('data: ')) yield line.slice(6)
  }
}

function bodyOf (model, messages, options) {
  return {
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
    max_tokens: options.maxNewTokens,
    temperature: options.temperature ?? 0,
    top_p: options.topP ?? 1,
    top_k: options.topK ?? 0,
    min_p: options.minP ?? 0,
    repetition_penalty: options.repetitionPenalty ?? 1,
    seed: options.seed === undefined ? undefined : Number(options.seed)
  }
}

async function ask (body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY)
    const headers = { 'Content-Type': 'application/json', ...(key && { Authorization: `Bearer ${key}` }) }
    const response = await fetch('v1/chat/completions', { method: 'POST', headers, body: JSON.stringify(body), signal })
    if (response.ok) return response
    const problem = await problemOf(response)
    if (response.status !== 401) throw problem
    const given = window.prompt('This server asks for its API key.')
    if (!given) throw problem
    sessionStorage.setItem(KEY, given)
  }
}

export async function open ({ model }) {
  const response = await fetch('about.json')
  if (!response.ok) throw await problemOf(response)
  const about = await response.json()
  const { contextLength } = about
  return {
    ...about,
    async chat (messages, options, { signal, onText }) {
      const stats = { promptTokens: 0, newTokens: 0, tokensPerSecond: 0, stoppedBy: 'abort', contextUsed: 0, contextLength }
      let first = 0
      let pieces = 0
      try {
        const { body } = await ask(bodyOf(model, messages, options), signal)
        for await (const line of dataOf(body)) {
          if (line === '[DONE]') break
          const chunk = JSON.parse(line)
          if (chunk.error) throw new Error(chunk.error.message)
          const choice = chunk.choices[0]
          if (choice?.delta?.content) {
            first ||= performance.now()
            pieces++
            onText(choice.delta.content)
          }
          if (choice?.finish_reason) stats.stoppedBy = choice.finish_reason
          if (chunk.usage) {
            stats.promptTokens = chunk.usage.prompt_tokens
            stats.newTokens = chunk.usage.completion_tokens
          }
        }
      } catch (error) {
        if (!signal.aborted) throw error
      }
      stats.newTokens ||= pieces
      const seconds = (performance.now() - first) / 1000
      if (first && seconds > 0) stats.tokensPerSecond = Math.max(0, stats.newTokens - 1) / seconds
      stats.contextUsed = stats.promptTokens + stats.newTokens
      return stats
    }
  }
}
