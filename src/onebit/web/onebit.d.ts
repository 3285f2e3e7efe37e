/** Runs onebit models in a browser, a worker or Node.js. */

export interface LoadOptions {
  /** Called as the file comes; total is 0 where the server does not say. */
  onProgress?: (progress: { loaded: number, total: number }) => void
  /** Ends the download. */
  signal?: AbortSignal
  /** The folder with onebit.wasm and onebit-relaxed.wasm, if it is not the module's; end it with a slash. */
  wasm?: string | URL
  /** Tokens that the context holds; the model's longest if not given, less where memory does not suffice. */
  contextLength?: number
}

export interface GenerateOptions {
  /** 256 if not given. */
  maxNewTokens?: number
  /** 0, the default: always the most likely token. */
  temperature?: number
  /** Choose among the k most likely; 0: all. */
  topK?: number
  /** Choose among the likeliest with this mass; 1: all. */
  topP?: number
  /** Drop tokens below this share of the best one's probability; 0: none. */
  minP?: number
  /** Above 1: tokens among the last 64 become less likely. */
  repetitionPenalty?: number
  /** The same seed gives the same text. */
  seed?: number | bigint
  /** End before this text appears. */
  stop?: string | string[]
  /** Ends the answer; what was said stays. */
  signal?: AbortSignal
}

export interface Message {
  role: 'system' | 'user' | 'assistant'
  content: string
}

export interface Stats {
  promptTokens: number
  /** Oldest messages that did not fit into the context. */
  droppedMessages: number
  newTokens: number
  prefillSeconds: number
  decodeSeconds: number
  /** New tokens a second after the first. */
  tokensPerSecond: number
  contextUsed: number
  contextLength: number
  /** null while it runs; 'left' when its reader went away. */
  stoppedBy: 'eos' | 'stop' | 'length' | 'context' | 'abort' | 'left' | null
}

/** The strings around messages, compiled from a chat template. */
export interface ChatStrings {
  opening: string
  systemPrefix: string
  systemSuffix: string
  userPrefix: string
  userSuffix: string
  assistantPrefix: string
  assistantSuffix: string
  generationPrefix: string
  stripsContent: boolean
  hasSystem: boolean
}

/** Pieces of text. One at a time for a model. `stats` and `ids`, the new tokens, grow while it is read. */
export class Generation implements AsyncIterable<string> {
  readonly ids: number[]
  readonly stats: Stats
  [Symbol.asyncIterator] (): AsyncIterator<string>
}

export class Model {
  readonly contextLength: number
  readonly vocabularySize: number
  readonly fileBytes: number
  readonly bos: number | null
  readonly eos: number | null
  /** null: the model has no chat template, or one that is more than prefixes and suffixes. */
  readonly chatStrings: ChatStrings | null
  /** What the engine computes each operation with. */
  readonly kernels: string[]
  /** How many tokens are held. */
  readonly position: number
  /** After the last token held; a copy. */
  readonly logits: Float32Array
  /** Continues a text, or token ids. */
  generate (prompt: string | number[], options?: GenerateOptions): Generation
  /** Answers the last message, as the model's chat template has it. */
  chat (messages: Message[], options?: GenerateOptions): Generation
  /** Token ids, without the token that starts a text. */
  encode (text: string): number[]
  encodeChat (messages: Message[]): number[]
  /** The token with this text. */
  findToken (text: string): number | null
  /** UTF-8 of one token, which may end within a character; none for control tokens. */
  tokenBytes (id: number, isFirst?: boolean): Uint8Array
  /** Makes the model hold `ids`, computing only what it does not hold from the start; false when `pause` said to stop. */
  hold (ids: number[], pause: () => boolean | undefined | Promise<boolean | undefined>): Promise<boolean>
  /** Appends tokens. */
  forward (ids: number[], wantsLogits?: boolean): void
}

/** Loads a .1bit file. Errors say what is wrong with the file, the download or the memory. */
export function load (source: string | URL | ArrayBuffer | ArrayBufferView, options?: LoadOptions): Promise<Model>

/** Whether this engine has the relaxed SIMD that onebit-relaxed.wasm is built with. */
export function hasRelaxedSimd (): boolean
