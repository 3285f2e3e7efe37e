/** Where a chat page's answers come from. `NAME-transport.js` exports `open`; page.json names it: { "transport": "NAME" }. */

import type { Message, GenerateOptions } from './onebit.js'

/** page.json beside index.html: what the page is about. */
export interface PageSettings {
  /** 'wasm': a model file in this browser, named by `model`. */
  transport: string
  /** Shown in the page's title. */
  title: string
  /** The model file beside the page, or the name that a server knows it by. */
  model: string
}

export interface AnswerStats {
  promptTokens: number
  newTokens: number
  /** After the first token. */
  tokensPerSecond: number
  /** 'eos', 'stop', 'length', 'context' or 'abort'. */
  stoppedBy: string
  /** Tokens that the context holds now, of how many it can; left out where a transport does not know. */
  contextUsed?: number
  contextLength?: number
  /** Oldest turns that were left out for want of room. */
  droppedMessages?: number
}

export interface Transport {
  contextLength?: number
  fileBytes?: number
  /** false: the model has no chat template and continues what is typed. */
  isChat: boolean
  /** false: the template knows no system message. */
  hasSystem: boolean
  /** Answers the last message. Ends with stats, also when `signal` aborts; rejects with an Error fit to be read. */
  chat (messages: Message[], options: GenerateOptions, answer: { signal: AbortSignal, onText: (text: string) => void }): Promise<AnswerStats>
}

export function open (settings: PageSettings, onProgress: (progress: { loaded: number, total: number }) => void): Promise<Transport>
