// Markdown as DOM nodes. Text becomes text nodes and nothing else: no HTML of the model is ever parsed, links go to http, https
// and mailto alone, pictures are not loaded. Headings, lists, quotations, tables, fenced code; emphasis, code and links.

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`\s]*)[^`]*$/
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/
const ITEM = /^( *)([-*+]|\d{1,9}[.)])\s+(.*)$/
const QUOTE = /^ {0,3}> ?(.*)$/
const TABLE_LINE = /^ *\|?( *:?-+:? *\|)+ *:?-* *:? *$/
const INLINE = new RegExp([
  '(?<code>(?<ticks>`+)(?<codeText>[^`]|[^`].*?[^`])\\k<ticks>(?!`))',
  '(?<strong>\\*\\*(?<strongText>\\S(?:.*?\\S)?)\\*\\*)',
  '(?<strike>~~(?<strikeText>\\S(?:.*?\\S)?)~~)',
  '(?<em>(?<![\\w*])\\*(?<emText>[^\\s*](?:[^*]*[^\\s*])?)\\*(?![\\w*])|(?<![\\w_])_(?<emText2>[^\\s_](?:[^_]*[^\\s_])?)_(?![\\w_]))',
  '(?<link>\\[(?<linkText>[^\\]]+)\\]\\((?<linkTo>[^\\s)]+)\\))',
  '(?<url>https?://[^\\s<>"\']*[^\\s<>"\'.,;:!?)\\]])'
].join('|'), 's')

function element (name, children = [], attributes = {}) {
  const node = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value)
  node.append(...[children].flat())
  return node
}

function link (text, to) {
  if (!/^(https?:|mailto:)/i.test(to)) return [document.createTextNode(text)]
  return [element('a', inline(text), { href: to, target: '_blank', rel: 'noopener noreferrer nofollow' })]
}

/** Nodes of a piece of text within a block. */
function inline (text) {
  const nodes = []
  for (let found = INLINE.exec(text); found; found = INLINE.exec(text)) {
    const { groups } = found
    nodes.push(document.createTextNode(text.slice(0, found.index)))
    if (groups.code) nodes.push(element('code', groups.codeText))
    else if (groups.strong) nodes.push(element('strong', inline(groups.strongText)))
    else if (groups.strike) nodes.push(element('del', inline(groups.strikeText)))
    else if (groups.em) nodes.push(element('em', inline(groups.emText ?? groups.emText2)))
    else if (groups.link) nodes.push(...link(groups.linkText, groups.linkTo))
    else nodes.push(element('a', groups.url, { href: groups.url, target: '_blank', rel: 'noopener noreferrer nofollow' }))
    text = text.slice(found.index + found[0].length)
  }
  return [...nodes, document.createTextNode(text)]
}

/** Takes the lines of a block from `lines` at `at`; returns the node and where the next block begins. */
function fenced (lines, at) {
  const [, fence, language] = FENCE.exec(lines[at])
  const isEnd = (line) => line.trim().startsWith(fence) && !line.trim().replaceAll(fence[0], '')
  let end = at + 1
  while (end < lines.length && !isEnd(lines[end])) end++
  const code = element('code', lines.slice(at + 1, end).join('\n'))
  return [element('figure', [element('figcaption', language || 'code'), element('pre', code, { tabindex: '0' })], { class: 'code' }), end + 1]
}

function quoted (lines, at) {
  let end = at
  while (end < lines.length && QUOTE.test(lines[end])) end++
  return [element('blockquote', blocks(lines.slice(at, end).map((line) => QUOTE.exec(line)[1]))), end]
}

function listed (lines, at) {
  const [, indent, mark] = ITEM.exec(lines[at])
  const isNumbered = /\d/.test(mark)
  const items = []
  let end = at
  for (; end < lines.length; end++) {
    const item = ITEM.exec(lines[end])
    const isNext = item && item[1].length <= indent.length + 1 && /\d/.test(item[2]) === isNumbered
    const isInside = !isNext && (lines[end].startsWith(indent + '  ') || (!lines[end].trim() && lines[end + 1]?.startsWith(indent + '  ')))
    if (isNext) items.push([item[3]])
    else if (isInside) items.at(-1).push(lines[end].slice(indent.length + 2))
    else if (lines[end].trim() || !ITEM.test(lines[end + 1] ?? '')) break
  }
  const attributes = isNumbered && parseInt(mark) !== 1 ? { start: String(parseInt(mark)) } : {}
  const nodes = items.map((item) => element('li', item.length > 1 ? [...inline(item[0]), ...blocks(item.slice(1))] : inline(item[0])))
  return [element(isNumbered ? 'ol' : 'ul', nodes, attributes), end]
}

const cells = (line) => line.trim().replace(/^\||\|$/g, '').split('|').map((cell) => cell.trim())

function tabled (lines, at) {
  let end = at + 2
  while (end < lines.length && lines[end].includes('|') && lines[end].trim()) end++
  const row = (line, name) => element('tr', cells(line).map((cell) => element(name, inline(cell))))
  const head = element('thead', row(lines[at], 'th'))
  const body = element('tbody', lines.slice(at + 2, end).map((line) => row(line, 'td')))
  return [element('div', element('table', [head, body]), { class: 'table', tabindex: '0' }), end]
}

const isTable = (lines, at) => lines[at].includes('|') && TABLE_LINE.test(lines[at + 1] ?? '')
const startsBlock = (lines, at) => [FENCE, HEADING, RULE, ITEM, QUOTE].some((kind) => kind.test(lines[at])) || isTable(lines, at)

function paragraph (lines, at) {
  let end = at + 1
  while (end < lines.length && lines[end].trim() && !startsBlock(lines, end)) end++
  const text = lines.slice(at, end).map((line) => line.trim()).join('\n')
  return [element('p', inline(text)), end]
}

function blocks (lines) {
  const nodes = []
  for (let at = 0; at < lines.length;) {
    let node = null
    if (!lines[at].trim()) at++
    else if (FENCE.test(lines[at])) [node, at] = fenced(lines, at)
    else if (HEADING.test(lines[at])) {
      const [, marks, text] = HEADING.exec(lines[at++])
      node = element(`h${Math.min(6, marks.length + 2)}`, inline(text)) // h1 and h2 are the page's own
    } else if (RULE.test(lines[at])) [node, at] = [element('hr'), at + 1]
    else if (QUOTE.test(lines[at])) [node, at] = quoted(lines, at)
    else if (ITEM.test(lines[at])) [node, at] = listed(lines, at)
    else if (isTable(lines, at)) [node, at] = tabled(lines, at)
    else [node, at] = paragraph(lines, at)
    if (node) nodes.push(node)
  }
  return nodes
}

/** The nodes of a Markdown text. */
export const markdown = (text) => blocks(text.replaceAll('\r\n', '\n').replaceAll('\t', '    ').split('\n'))
