// The page's behaviour: light or dark, which methods show, and figures drawn from the data in #data.

const data = JSON.parse(document.getElementById('data').textContent);
const root = document.documentElement;
const status = document.getElementById('status');
const hidden = new Set();
let printing = false;

let quiet;
function say(text) {
  status.textContent = text;
  clearTimeout(quiet);
  quiet = setTimeout(() => { status.textContent = ''; }, 2000);
}

// --- light and dark -------------------------------------------------------------------------------

const system = matchMedia('(prefers-color-scheme: dark)');
const isDark = () => (root.dataset.theme ? root.dataset.theme === 'dark' : system.matches);

function shown(theme) {
  if (theme) root.dataset.theme = theme;
  document.querySelector('#theme span').textContent = isDark() ? 'Light' : 'Dark';
  drawAll();
}

document.getElementById('theme').addEventListener('click', () => {
  const theme = isDark() ? 'light' : 'dark';
  try { localStorage.setItem('fedbench-theme', theme); } catch { /* a browser may keep nothing for files */ }
  shown(theme);
});
system.addEventListener('change', () => shown());

// --- figures: from the data's own traces to plotly's --------------------------------------------------

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';

// Colours as they stand in the page, or those of the light page for print and files.
function palette(light) {
  const before = root.dataset.theme;
  if (light) root.dataset.theme = 'light';
  const style = getComputedStyle(root);
  const of = (name) => style.getPropertyValue(name).trim();
  const found = {
    ink: of('--ink'), quiet: of('--quiet'), line: of('--line'), card: of('--card'), mixed: of('--mixed'),
    methods: data.methods.map((_, i) => of(`--m${i}`)),
  };
  if (light) { if (before) root.dataset.theme = before; else delete root.dataset.theme; }
  return found;
}

const faint = (hex, alpha) => hex + Math.round(alpha * 255).toString(16).padStart(2, '0');
const html = (text) => text.replace(/&/g, '&amp;').replace(/</g, '&lt;').replace(/>/g, '&gt;');
const known = (trace) => trace.x.map((_, i) => i).filter((i) => trace.y[i] !== null && trace.x[i] !== null);
const spreads = (trace) => trace.e.map((e, i) => [e === null ? '' : ` ± ${e}`, trace.n[i] === 1 ? '1 seed' : `${trace.n[i]} seeds`]);

const MAKE = {
  line(t, c, look) {
    const kept = known(t).filter((i) => t.e[i] !== null);
    const band = {
      type: 'scatter', mode: 'lines', line: { width: 0 }, fill: 'toself', fillcolor: faint(look.colour, 0.16),
      hoverinfo: 'skip', showlegend: false, legendgroup: look.name,
      x: [...kept, ...kept.slice().reverse()].map((i) => t.x[i]),
      y: [...kept.map((i) => t.y[i] + t.e[i]), ...kept.slice().reverse().map((i) => t.y[i] - t.e[i])],
    };
    if (t.method === null) return [{ type: 'scatter', mode: 'lines', x: t.x, y: t.y, hoverinfo: 'skip', showlegend: false, line: { color: c.quiet, dash: 'dot', width: 1.4 } }];
    const line = {
      type: 'scatter', mode: t.x.length > 40 ? 'lines' : 'lines+markers', name: look.name, x: t.x, y: t.y,
      legendgroup: look.name, customdata: spreads(t),
      line: { color: look.colour, width: 2.2, dash: look.dash }, marker: { symbol: look.symbol, size: 6, color: look.colour },
      hovertemplate: `${look.hover}<br>%{x}: %{y}%{customdata[0]} (%{customdata[1]})<extra></extra>`,
    };
    return kept.length > 1 && !look.off ? [band, line] : [line];
  },
  step(t, c, look) {
    return [{
      type: 'scatter', mode: 'lines', name: look.name, x: t.x, y: [...t.y, t.y[t.y.length - 1]],
      line: { color: look.colour, width: 2.2, dash: look.dash, shape: 'hv' },
      hovertemplate: `${look.hover}<br>from %{x}: %{y} %<extra></extra>`,
    }];
  },
  bar(t, c, look) {
    return [{
      type: 'bar', name: look.name, x: t.x, y: t.y, customdata: spreads(t), marker: { color: look.colour },
      error_y: { type: 'data', array: t.e.map((e) => e ?? 0), color: c.ink, thickness: 1.2, width: 3, visible: t.e.some((e) => e !== null) },
      hovertemplate: `${look.hover}<br>%{x}: %{y}%{customdata[0]} (%{customdata[1]})<extra></extra>`,
    }];
  },
  point(t, c, look) {
    const error = (e) => ({ type: 'data', array: e.map((v) => v ?? 0), color: look.colour, thickness: 1.4, width: 4 });
    return [{
      type: 'scatter', mode: 'markers', name: look.name, x: t.x, y: t.y, error_x: error(t.ex), error_y: error(t.ey),
      marker: { symbol: look.symbol, size: 12, color: look.colour, line: { width: 1, color: c.card } },
      hovertemplate: `${look.hover}<br>%{x}, %{y}<br>± ${t.ex[0] ?? '–'}, ± ${t.ey[0] ?? '–'} (${t.n[0]} seeds)<extra></extra>`,
    }];
  },
  heat(t, c, look, variant) {
    const rows = t.methods.map((m, i) => i).filter((i) => !hidden.has(t.methods[i])).reverse();
    return [{
      type: 'heatmap', x: t.x, y: rows.map((i) => html(data.methods[t.methods[i]])), z: rows.map((i) => t.z[i]),
      colorscale: 'Cividis', xgap: t.x.length < 60 ? 1 : 0, ygap: 1, hoverongaps: false,
      colorbar: { title: { text: html(variant.z), side: 'right', font: { size: 11 } }, thickness: 10, outlinewidth: 0, tickfont: { color: c.quiet } },
      hovertemplate: '%{y}<br>client %{x}: %{z}<extra></extra>',
    }];
  },
  path(t, c, look) {
    const label = { axis: '', group: '' }[t.role] ?? t.label;
    const right = t.role === 'method' ? `middle ${t.side === 'left' ? 'left' : 'right'}` : 'top center';
    return [{
      type: 'scatter', mode: label ? 'lines+text' : 'lines', x: t.x, y: t.y, cliponaxis: false, showlegend: false,
      text: t.x.map((_, i) => (i === (t.role === 'cd' ? 1 : t.x.length - 1) && label ? `\u00a0${html(label)}\u00a0` : '')), textposition: right,
      textfont: { color: c.ink, size: 12 }, hoverinfo: t.label ? 'text' : 'skip', hovertext: html(t.label),
      line: { color: t.role === 'method' ? look.colour : c.ink, width: { group: 6, method: 2, cd: 2 }[t.role] ?? 1 },
    }];
  },
};

// What no other shown method beats in both cost and score, cheapest first.
function front(traces, up) {
  const better = (a, b) => (up ? a >= b : a <= b);
  const points = traces.map((t) => [t.x[0], t.y[0]]);
  const beaten = (p) => points.some((q) => q[0] <= p[0] && better(q[1], p[1]) && (q[0] !== p[0] || q[1] !== p[1]));
  return points.filter((p) => !beaten(p)).sort((a, b) => a[0] - b[0]);
}

function drawing(figure, variant, c, { width, exported = false } = {}) {
  const small = (width ?? 900) < 440;
  const on = (t) => t.method === null || !hidden.has(t.method);
  const traces = variant.traces.filter((t) => on(t) || (!exported && t.kind !== 'path')).flatMap((t) => {
    const name = t.method === null ? '' : html(data.methods[t.method]);
    const look = t.method === null ? { name, colour: c.mixed } : {
      name, hover: `<b>${name}</b>`, colour: c.methods[t.method], symbol: data.symbols[t.method],
      dash: data.dashes[t.method], off: !on(t),
    };
    return MAKE[t.kind](t, c, look, variant).map((made) => ({ ...made, meta: t.method, visible: on(t) ? true : 'legendonly' }));
  });
  if (figure.front) {
    const line = front(variant.traces.filter(on), figure.front === 'max');
    if (line.length > 1) {
      traces.unshift({
        type: 'scatter', mode: 'lines', x: line.map((p) => p[0]), y: line.map((p) => p[1]), hoverinfo: 'skip',
        line: { color: c.quiet, dash: 'dot', width: 1.4 }, showlegend: false,
      });
    }
  }
  const kind = variant.traces[0]?.kind;
  const axis = (title) => ({
    title: { text: html(title), font: { size: 12, color: c.quiet }, standoff: 8 }, gridcolor: c.line, zeroline: false,
    linecolor: c.line, tickfont: { color: c.quiet, size: 11 }, automargin: true, fixedrange: small,
  });
  const layout = {
    paper_bgcolor: exported ? '#ffffff' : 'rgba(0,0,0,0)', plot_bgcolor: 'rgba(0,0,0,0)', font: { family: FONT, color: c.ink, size: 12 },
    margin: { l: 8, r: 12, t: 8, b: 8 }, height: 340, hovermode: 'closest', showlegend: kind !== 'heat' && kind !== 'path' && (exported || !small),
    legend: { orientation: 'h', x: 0, y: 1.02, yanchor: 'bottom', font: { size: 11 } },
    xaxis: { ...axis(variant.x), showgrid: kind !== 'bar' }, yaxis: axis(variant.y), bargap: 0.22,
    hoverlabel: { bgcolor: c.card, bordercolor: c.line, font: { color: c.ink, family: FONT } },
  };
  if (kind === 'bar') layout.xaxis.type = 'category';
  if (kind === 'heat') {
    const rows = traces[0].y.length;
    layout.height = Math.max(exported ? 0 : 340, 110 + 30 * Math.max(rows, 2));
    Object.assign(layout.xaxis, { type: 'category', showgrid: false });
    Object.assign(layout.yaxis, { type: 'category', showgrid: false });
  }
  if (kind === 'path') {
    const hide = { visible: false, fixedrange: true };
    Object.assign(layout, { height: figure.height, margin: { l: small ? 84 : 170, r: small ? 84 : 170, t: 10, b: 10 } });
    layout.xaxis = { ...hide, range: figure.range };
    layout.yaxis = { ...hide };
    if (small) traces.forEach((t) => { if (t.textfont) t.textfont.size = 10; });
  }
  return { traces, layout };
}

const CONFIG = { displaylogo: false, displayModeBar: false, responsive: true, showTips: false };

function draw(box) {
  const figure = data.figures[box.dataset.figure];
  const plot = box.querySelector('.plot');
  const variant = figure.variants[Number(box.querySelector('select')?.value ?? 0)];
  const width = printing ? 640 : plot.clientWidth;
  const { traces, layout } = drawing(figure, variant, palette(printing), { width });
  if (printing) layout.width = width;
  Plotly.react(plot, traces, layout, CONFIG);
  if (!plot.dataset.heard) {
    plot.dataset.heard = 'yes';
    plot.on('plotly_legendclick', (event) => { toggle(event.data[event.curveNumber].meta); return false; });
    plot.on('plotly_legenddoubleclick', () => false);
  }
  if (box.querySelector('details').open) listNumbers(box);
}

const boxes = [...document.querySelectorAll('[data-figure]')];
let turn = 0;

// One after another, so that the page answers in between.
function drawAll() {
  const mine = ++turn;
  const rest = boxes.slice();
  const next = () => {
    if (mine !== turn || !rest.length) { if (mine === turn) root.dataset.drawn = 'yes'; return; }
    draw(rest.shift());
    setTimeout(next);
  };
  delete root.dataset.drawn;
  next();
}

function numbers(figure, variant) {
  const rows = [figure.columns.map((name) => name.replace('{x}', variant.x))];
  for (const t of variant.traces) {
    const name = data.methods[t.method];
    if (t.method !== null && hidden.has(t.method)) continue;
    if (t.kind === 'line' && t.method === null) continue; // a guide for the eye
    if (t.kind === 'heat') {
      t.methods.forEach((m, j) => { if (!hidden.has(m)) t.x.forEach((x, i) => rows.push([data.methods[m], x, t.z[j][i]])); });
    } else if (t.kind === 'path') {
      if (t.role === 'method') rows.push([name, t.x[0]]);
    } else if (t.kind === 'point') rows.push([name, t.x[0], t.y[0], t.ex[0], t.ey[0], t.n[0]]);
    else if (t.kind === 'step') t.y.forEach((y, i) => rows.push([name, t.x[i], y]));
    else t.x.forEach((x, i) => rows.push([name, x, t.y[i], t.e[i], t.n[i]]));
  }
  return rows;
}

const variantOf = (box) => data.figures[box.dataset.figure].variants[Number(box.querySelector('select')?.value ?? 0)];

function listNumbers(box) {
  const [head, ...rows] = numbers(data.figures[box.dataset.figure], variantOf(box));
  const row = (texts, kind) => {
    const made = document.createElement('tr');
    made.append(...texts.map((t, i) => {
      const cell = document.createElement(kind === 'th' || !i ? 'th' : 'td');
      cell.textContent = t ?? '–';
      return cell;
    }));
    return made;
  };
  const table = document.createElement('table');
  table.createTHead().append(row(head, 'th'));
  table.createTBody().append(...rows.map((r) => row(r)));
  box.querySelector('.numbers .scroll').replaceChildren(table);
}

async function saveFigure(box, format) {
  const figure = data.figures[box.dataset.figure];
  const place = box.closest('section').querySelector('h2').textContent;
  const name = fileName(`${place} ${figure.title}`);
  if (format === 'csv') { save(`${name}.csv`, csv(numbers(figure, variantOf(box))), 'text/csv'); return; }
  const { traces, layout } = drawing(figure, variantOf(box), palette(true), { exported: true });
  const width = 760;
  const uri = await Plotly.toImage({ data: traces, layout: { ...layout, width } }, { format: 'svg', width, height: layout.height });
  save(`${name}.svg`, decodeURIComponent(uri.slice(uri.indexOf(',') + 1)), 'image/svg+xml');
}

for (const box of boxes) {
  box.querySelector('select')?.addEventListener('change', () => draw(box));
  box.querySelector('details').addEventListener('toggle', (event) => { if (event.target.open) listNumbers(box); });
  for (const button of box.querySelectorAll('[data-save]')) {
    button.addEventListener('click', () => saveFigure(box, button.dataset.save));
  }
}

// --- which methods show -------------------------------------------------------------------------------

const ticks = [...document.querySelectorAll('#methods input')];

function toggle(method) {
  if (method === null || method === undefined) return;
  ticks[method].checked = !ticks[method].checked;
  follow();
}

function follow() {
  hidden.clear();
  ticks.forEach((tick, i) => { if (!tick.checked) hidden.add(i); });
  for (const row of document.querySelectorAll('tr[data-method]')) row.hidden = hidden.has(Number(row.dataset.method));
  document.querySelectorAll('.table').forEach(markBest);
  drawAll();
}

// The best number of a column among the rows that show.
function markBest(box) {
  const all = [...box.querySelectorAll('tbody tr[data-method]')];
  const rows = all.filter((r) => !r.hidden);
  box.querySelectorAll('thead th').forEach((head, i) => {
    const better = head.dataset.better;
    if (!better) return;
    all.forEach((r) => r.cells[i].classList.remove('best'));
    const held = rows.map((r) => r.cells[i]).filter((cell) => cell.dataset.v !== undefined && cell.dataset.apart === undefined);
    if (held.length < 2) return;
    const sign = better === 'max' ? 1 : -1;
    held.reduce((a, b) => (sign * b.dataset.v > sign * a.dataset.v ? b : a)).classList.add('best');
  });
}

document.getElementById('methods').addEventListener('submit', (event) => event.preventDefault());
ticks.forEach((tick) => tick.addEventListener('change', follow));
document.getElementById('all').addEventListener('click', () => { ticks.forEach((t) => { t.checked = true; }); follow(); });

// --- tables, print, start -----------------------------------------------------------------------------

for (const box of document.querySelectorAll('.table')) addTools(box, say);
for (const box of document.querySelectorAll('.choice')) {
  box.querySelector('select').addEventListener('change', (event) => {
    box.querySelectorAll(':scope > .option').forEach((part, i) => { part.hidden = i !== Number(event.target.value); });
  });
}

function print(now) {
  printing = now;
  turn += 1;
  boxes.forEach(draw);
  if (!now) root.dataset.drawn = 'yes';
}
addEventListener('beforeprint', () => print(true));
addEventListener('afterprint', () => print(false));

let kept;
try { kept = localStorage.getItem('fedbench-theme'); } catch { /* as above */ }
shown(kept || undefined);
