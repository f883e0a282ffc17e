'use strict';
// Files that a reader takes along: tables as LaTeX, Markdown and CSV, numbers of figures as CSV, figures as SVG.

function save(name, content, type) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);  // a busy browser reads it late
}

function fileName(text) {
  return text.toLowerCase().replace(/[^a-z0-9]+/g, '-').replace(/^-|-$/g, '') || 'fedbench';
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not every browser lets a local file at the clipboard
    const area = document.createElement('textarea');
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}

// Text that starts like a formula is kept from being run as one by spreadsheets.
function csv(rows) {
  const field = (v) => {
    if (v === null || v === undefined) return '';
    const text = typeof v === 'string' && /^[=+@-]/.test(v) && isNaN(v) ? `'${v}` : String(v);
    return /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };
  return rows.map((row) => row.map(field).join(',')).join('\n') + '\n';
}

// What a table shows now: its caption, column names, and rows of cells.
function readTable(box) {
  const table = box.querySelector('table');
  const cells = (row) => [...row.children].map((c) => ({
    text: c.textContent.trim(), mean: c.dataset.v, std: c.dataset.s, best: c.classList.contains('best'),
  }));
  const rows = [...table.tBodies[0].rows].filter((r) => !r.hidden);
  return {
    caption: table.caption.textContent,
    head: [...table.tHead.rows[0].cells].map((c) => c.textContent),
    rows: rows.map((r) => ({ cells: cells(r), reference: r.classList.contains('reference') })),
  };
}

// Means and deviations in full, each in a column of its own.
function tableCsv({ head, rows }) {
  const spread = head.map((_, i) => rows.some((r) => r.cells[i].std !== undefined));
  const flat = (i, value, std) => (spread[i] ? [value, std] : [value]);
  const first = head.flatMap((name, i) => flat(i, name, `${name} std`));
  const body = rows.map((r) => r.cells.flatMap((c, i) => flat(i, c.mean ?? (c.text === '–' ? '' : c.text), c.std ?? '')));
  return csv([first, ...body]);
}

function tableMarkdown({ head, rows }) {
  const line = (texts) => `| ${texts.map((t) => t.replace(/\|/g, '\\|').replace(/\s+/g, ' ')).join(' | ')} |`;
  const rule = head.map((_, i) => (i ? '---:' : '---'));
  const body = rows.map((r) => line(r.cells.map((c) => (c.best ? c.text.replace(/^[^ ]+/, '**$&**') : c.text))));
  return [line(head), line(rule), ...body].join('\n') + '\n';
}

const TEX = {
  '\\': '\\textbackslash{}', '&': '\\&', '%': '\\%', '$': '\\$', '#': '\\#', '_': '\\_', '{': '\\{', '}': '\\}',
  '~': '\\textasciitilde{}', '^': '\\textasciicircum{}', '†': '$^\\dagger$', '±': '$\\pm$', '−': '$-$',
  '–': '--', '≥': '$\\geq$', '≤': '$\\leq$', '<': '$<$', '>': '$>$', '|': '$|$',
};
const tex = (text) => text.replace(/[\\&%$#_{}~^†±−–≥≤<>|]/g, (c) => TEX[c]).replace(/\s+/g, ' ');

// Needs \usepackage{booktabs}.
function tableLatex({ caption, head, rows }) {
  const cell = (c) => (c.best ? tex(c.text).replace(/^[^ ]+/, '\\textbf{$&}') : tex(c.text));
  const line = (texts) => `${texts.join(' & ')} \\\\`;
  const body = [];
  rows.forEach((r, i) => {
    if (i && r.reference && !rows[i - 1].reference) body.push('\\midrule');
    body.push(line(r.cells.map(cell)));
  });
  return [
    '\\begin{table}', '\\centering', `\\caption{${tex(caption)}}`,
    `\\begin{tabular}{l${'r'.repeat(head.length - 1)}}`, '\\toprule', line(head.map(tex)), '\\midrule', ...body,
    '\\bottomrule', '\\end{tabular}', '\\end{table}', '',
  ].join('\n');
}

const FORMATS = {
  LaTeX: [tableLatex, 'tex', 'application/x-tex'],
  Markdown: [tableMarkdown, 'md', 'text/markdown'],
  CSV: [tableCsv, 'csv', 'text/csv'],
};

// The tools below a table; they are made here, as they do nothing without a script.
function addTools(box, say) {
  const tools = document.createElement('div');
  tools.className = 'export';
  const pick = document.createElement('select');
  pick.setAttribute('aria-label', `${box.dataset.name}: format`);
  pick.append(...Object.keys(FORMATS).map((name) => new Option(name)));
  const button = (name, act) => {
    const made = document.createElement('button');
    made.type = 'button';
    made.textContent = name;
    made.setAttribute('aria-label', `${box.dataset.name}: ${name.toLowerCase()}`);
    made.addEventListener('click', () => act(...FORMATS[pick.value]));
    return made;
  };
  tools.append(
    pick,
    button('Copy', async (write) => { await copy(write(readTable(box))); say(`Copied as ${pick.value}`); }),
    button('Download', (write, ending, type) => save(`${fileName(box.dataset.name)}.${ending}`, write(readTable(box)), type)),
  );
  box.querySelector('.scroll').after(tools);
}
