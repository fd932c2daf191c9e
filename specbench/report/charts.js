// Figures. Plotly reads a little HTML in its texts, so everything that is not ours goes through `plain` first.

const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "star", "hexagon", "cross", "triangle-down"];
const DASHES = ["solid", "dash", "dot", "dashdot"];
const PHASES = [
  ["verify", "verify", ""],
  ["draft", "draft", "/"],
  ["accept", "accept", "x"],
  ["commit", "commit", "."],
  ["other", "other", "-"],
];

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const ruler = document.createElement("canvas").getContext("2d");

function widthOf(text, size) {
  ruler.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(text).width;
}

// The longest beginning of a name that fits into so many pixels.
function fit(text, pixels, size = 12) {
  if (widthOf(text, size) <= pixels) return text;
  const letters = [...text];
  while (letters.length > 1 && widthOf(letters.join("") + "…", size) > pixels) letters.pop();
  return letters.join("") + "…";
}

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A method keeps its colour and symbol on the whole page, whatever the scope; the baseline and its control are grey.
function look(label) {
  const index = DATA.methods.indexOf(label);
  if (index < 0) return { colour: css("--base"), symbol: "circle-open", dash: "solid", index };
  return { colour: css("--c" + (index % 8)), symbol: SYMBOLS[index % 8], dash: DASHES[Math.floor(index / 8) % 4], index };
}

function baseLayout(height, more) {
  const axis = { gridcolor: css("--grid"), linecolor: css("--line"), zerolinecolor: css("--line"), tickcolor: css("--line"), zeroline: false, fixedrange: true, automargin: false };
  const layout = {
    height, autosize: true, showlegend: false, dragmode: false,
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: css("--text") },
    margin: { l: NAMES_PX, r: 16, t: 8, b: 34 },
    hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--line"), font: { color: css("--text"), size: 12 }, align: "left" },
    ...more,
  };
  for (const name of ["xaxis", "yaxis"]) layout[name] = { ...axis, ...(more[name] || {}) };
  return layout;
}

function draw(mount, name, traces, layout) {
  const plot = el("div", { role: "img", "aria-label": name });
  const save = el("button", { type: "button", class: "save", title: "Save this figure as SVG" }, "SVG");
  save.addEventListener("click", () => Plotly.downloadImage(plot, { format: "svg", filename: name.replace(/[^\w-]+/g, "_"), width: plot.clientWidth, height: layout.height }));
  mount.classList.add("chart");
  mount.replaceChildren(plot, save);
  return Plotly.newPlot(plot, traces, layout, { displayModeBar: false, responsive: true, displaylogo: false });
}

const nothing = (mount, text) => mount.replaceChildren(el("p", { class: "waiting" }, text));
const NAMES_PX = 132;

// A label `name[option=value,…]` takes a line per option: cut at its end, the variants of a grid would look alike.
function nameLines(name) {
  const at = name.indexOf("[");
  if (at < 1) return [name];
  const options = name.slice(at).split(/(?<=,)/);
  return [name.slice(0, at), ...options.slice(0, 3), ...(options.length > 3 ? ["…"] : [])];
}

const fitName = (name) => nameLines(name).map((line) => plain(fit(line, NAMES_PX - 12))).join("<br>");
const rowPixels = (names, least) => Math.max(least, 6 + 16 * Math.max(...names.map((name) => nameLines(name).length)));
const questions = (n) => `${n} question${n === 1 ? "" : "s"}`;
const isPale = (row) => row.standing !== "ranked";

// Horizontal bars with whiskers, one line per method, names on the left and values on the right: no legend to look up.
function barPanel(mount, name, lines, range, options) {
  const labels = lines.map((line) => line.label);
  const colours = lines.map((line) => look(line.label).colour);
  const up = lines.map((line) => (line.ci ? line.ci[1] - line.value : 0));
  const down = lines.map((line) => (line.ci ? line.value - line.ci[0] : 0));
  const trace = {
    type: "bar", orientation: "h", y: labels.map((_, i) => i), x: lines.map((line) => line.value), width: 0.58,
    marker: { color: colours, opacity: lines.map((line) => (line.pale ? 0.6 : 0.92)), pattern: { shape: lines.map((line) => (line.pale ? "/" : "")), size: 6, solidity: 0.35, fgcolor: colours, bgcolor: css("--bg") }, line: { color: colours, width: lines.map((line) => (line.pale ? 1 : 0)) } },
    error_x: { type: "data", symmetric: false, array: up, arrayminus: down, color: css("--text"), thickness: 1.2, width: 3 },
    hovertext: lines.map((line) => line.hover.map(plain).join("<br>")), hoverinfo: "text",
  };
  const annotations = lines.map((line, i) => ({ xref: "paper", x: 1, xanchor: "left", xshift: 8, y: i, yanchor: "middle", showarrow: false, text: line.text, font: { size: 12 } }));
  const layout = baseLayout(rowPixels(labels, 26) * lines.length + 44, {
    margin: { l: NAMES_PX, r: 54, t: 8, b: 30 },
    xaxis: { range, nticks: 6 },
    yaxis: { tickvals: labels.map((_, i) => i), ticktext: labels.map(fitName), range: [lines.length - 0.5, -0.5], showgrid: false },
    shapes: [{ type: "line", x0: options.mark, x1: options.mark, yref: "paper", y0: 0, y1: 1, line: { color: css("--muted"), width: 1.2, dash: "dash" } }],
    annotations,
  });
  return draw(mount, name, [trace], layout);
}

function speedupLine(row, cell) {
  const shown = cell || row;
  return {
    label: row.method, value: shown.speedup, ci: shown.speedup_ci, pale: isPale(row), text: two(shown.speedup) + "×",
    hover: [row.method, `${times(shown.speedup)} ${interval(shown.speedup_ci)}`, `${questions(shown.num_questions)}, τ ${two(shown.acceptance_length)}`, ...(isPale(row) ? [row.rank_text] : [])],
  };
}

const isBaseline = (row) => row.kind === "baseline" && !row.is_control;
const measured = (scope) => scope.rows.filter((row) => !isBaseline(row) && row.speedup !== null);

function speedupPanels(scope) {
  const panels = [];
  for (const other of DATA.scopes.filter((s) => s.setting === scope.setting)) {
    const lines = measured(other).map((row) => speedupLine(row));
    panels.push({ group: "Suites, whole", title: other.suite, small: other === scope ? `this suite, ${questions(other.num_questions)}` : questions(other.num_questions), lines });
  }
  const categories = [];
  for (const row of measured(scope)) for (const cell of row.by_category) if (!categories.includes(cell.category)) categories.push(cell.category);
  if (categories.length > 1) {
    for (const category of categories) {
      const pairs = measured(scope).map((row) => [row, row.by_category.find((cell) => cell.category === category)]).filter(([, cell]) => cell && cell.speedup !== null);
      if (pairs.length) panels.push({ group: `Categories of ${scope.suite}`, title: category, small: questions(pairs[0][1].num_questions), lines: pairs.map(([row, cell]) => speedupLine(row, cell)) });
    }
  }
  return panels.filter((panel) => panel.lines.length);
}

function figSpeedup(mount, scope) {
  const panels = speedupPanels(scope);
  if (!panels.length) return nothing(mount, "No row here has a number.");
  const top = Math.max(1.2, ...panels.flatMap((panel) => panel.lines.map((line) => (line.ci ? line.ci[1] : line.value))));
  mount.replaceChildren();
  let group = "";
  for (const panel of panels) {
    if (panel.group !== group) mount.append(el("p", { class: "across" }, (group = panel.group)));
    const chart = el("div");
    mount.append(el("div", {}, el("h3", {}, panel.title + " ", el("small", {}, panel.small)), chart));
    barPanel(chart, `speed-up ${panel.title}`, panel.lines, [0, Math.min(top * 1.03, 12)], { mark: 1 });
  }
}

function figEfficiency(mount, scope) {
  const rows = measured(scope).filter((row) => row.efficiency !== null);
  if (!rows.length) return nothing(mount, "No method with a decode time of its own.");
  const lines = rows.map((row) => ({ label: row.method, value: row.efficiency, ci: row.efficiency_ci, pale: isPale(row), text: two(row.efficiency), hover: [row.method, `η ${two(row.efficiency)} ${row.efficiency_ci ? interval(row.efficiency_ci) : ""}`, `decode ${times(row.speedup_decode)} ÷ τ ${two(row.acceptance_length)}`] }));
  const top = Math.max(1.05, ...lines.map((line) => (line.ci ? line.ci[1] : line.value)));
  const chart = el("div");
  mount.replaceChildren(el("h3", {}, "Efficiency η"), chart);
  return barPanel(chart, "efficiency", lines, [0, top * 1.03], { mark: 1 });
}

// Names beside their points, each on the first side where it covers neither a point nor another name.
function placeNames(points, toPixels) {
  // side, where the box begins left of the point (in widths of the name) plus pixels, top of the box
  const sides = [["middle right", 0, 10, -8], ["middle left", 1, -10, -8], ["top center", 0.5, 0, -24], ["bottom center", 0.5, 0, 9], ["bottom left", 1, -4, 7], ["top left", 1, -4, -23], ["top right", 0, 4, -23], ["bottom right", 0, 4, 7]];
  const taken = points.map((point) => {
    const [x, y] = toPixels(point);
    return { left: x - 7, right: x + 7, top: y - 7, bottom: y + 7 };
  });
  const [farRight] = toPixels({ x: Infinity, y: 0 });
  return points.map((point) => {
    const width = widthOf(point.name, 11.5);
    const [x, y] = toPixels(point);
    const boxes = sides.map(([side, back, shift, top]) => {
      const left = x - back * width + shift;
      return { side, left, right: left + width, top: y + top, bottom: y + top + 16 };
    });
    const isFree = (box) => box.left >= 0 && box.right <= farRight && taken.every((t) => box.right < t.left || box.left > t.right || box.bottom < t.top || box.top > t.bottom);
    const chosen = boxes.find(isFree);
    if (chosen) taken.push(chosen);
    return chosen ? chosen.side : null;
  });
}

function figScatter(mount, scope) {
  const rows = measured(scope).filter((row) => row.speedup_decode !== null && row.acceptance_length !== null && !row.is_control);
  if (!rows.length) return nothing(mount, "No method to place.");
  const height = 350;
  const margin = { l: 64, r: 14, t: 24, b: 44 };
  const left = Math.min(0.9, ...rows.map((row) => row.acceptance_length * 0.95));
  const right = Math.max(1.5, ...rows.map((row) => row.acceptance_length)) * 1.12;
  const low = Math.max(0, Math.min(0.8, ...rows.map((row) => row.speedup_decode * 0.85)));
  const top = Math.max(1.3, ...rows.map((row) => row.speedup_decode)) * 1.12;
  const traces = [];
  const annotations = [];
  for (const eta of [1, 0.75, 0.5, 0.25]) {
    const end = Math.min(right, top / eta);
    if (end <= 1 || eta * end < low) continue;
    const atTop = end < right;
    traces.push({ type: "scatter", mode: "lines", x: [1, end], y: [eta, eta * end], hoverinfo: "skip", line: { color: css("--muted"), width: eta === 1 ? 1.4 : 0.9, dash: eta === 1 ? "solid" : "dot" } });
    annotations.push({ x: end, y: eta * end, text: `η ${eta}`, showarrow: false, xanchor: atTop ? "center" : "right", yanchor: "bottom", yshift: 1, font: { size: 11, color: css("--muted") } });
  }
  const points = [{ name: "plain decoding", x: 1, y: 1, row: null }, ...rows.map((row) => ({ name: fit(row.method, 130, 11.5), x: row.acceptance_length, y: row.speedup_decode, row }))];
  const chart = el("div");
  mount.replaceChildren(el("h3", {}, "Decode speed-up over τ"), chart);
  const wide = mount.clientWidth - margin.l - margin.r;
  const tall = height - margin.t - margin.b;
  const sides = placeNames(points, ({ x, y }) => [Math.min(1, (x - left) / (right - left)) * wide, (1 - (y - low) / (top - low)) * tall]);
  points.forEach((point, i) => {
    const style = point.row ? look(point.row.method) : { colour: css("--base"), symbol: "circle-open" };
    const hollow = point.row && isPale(point.row);
    traces.push({
      type: "scatter", mode: sides[i] ? "markers+text" : "markers", x: [point.x], y: [point.y], text: [plain(point.name)], textposition: sides[i] || "middle right", textfont: { size: 11.5, color: point.row ? css("--text") : css("--muted") }, cliponaxis: false,
      marker: { color: style.colour, symbol: style.symbol + (hollow ? "-open" : ""), size: 11, line: { width: hollow ? 1.8 : 1, color: hollow ? style.colour : css("--bg") } },
      hovertext: point.row ? [[point.row.method, `decode ${times(point.row.speedup_decode)}`, `τ ${two(point.row.acceptance_length)}, η ${two(point.row.efficiency)}`, ...(hollow ? [point.row.rank_text] : [])].map(plain).join("<br>")] : undefined,
      hoverinfo: point.row ? "text" : "skip",
    });
  });
  return draw(chart, "speed-up against acceptance length", traces, baseLayout(height, {
    margin, annotations,
    xaxis: { range: [left, right], title: { text: "τ, tokens per step", standoff: 8 }, nticks: 8 },
    yaxis: { range: [low, top], title: { text: "decode speed-up", standoff: 6 }, ticksuffix: "×", nticks: 7 },
  }));
}

const batchSizes = (scope) => [...new Set(scope.batches.flatMap((line) => line.points.map((point) => point.batch_size)))].sort((a, b) => a - b);

// One line a method over batch sizes, on a logarithmic axis whose ticks are the sizes that were measured.
function figBatches(mount, scope) {
  if (!scope.batches.length) return nothing(mount, "One batch size was measured under these conditions.");
  const legend = el("ul", { class: "legend" });
  for (const line of scope.batches) legend.append(el("li", {}, markOf(line.method), line.method));
  mount.replaceChildren(legend);
  const sizes = batchSizes(scope);
  for (const [kind, title, suffix] of [["tokens_per_s", "Tokens per second", ""], ["speedup", "Speed-up at this batch size", "×"]]) {
    const lines = scope.batches.filter((line) => line.points.some((point) => point[kind] !== null));
    if (!lines.length) continue;
    const traces = lines.map((line) => {
      const points = line.points.filter((point) => point[kind] !== null);
      const style = look(line.method);
      const ci = (point, side) => (kind === "speedup" && point.speedup_ci ? Math.abs(point.speedup_ci[side] - point.speedup) : 0);
      return {
        type: "scatter", mode: "lines+markers", x: points.map((point) => point.batch_size), y: points.map((point) => point[kind]),
        line: { color: style.colour, width: 2, dash: style.dash }, marker: { color: style.colour, size: 8, symbol: points.map((point) => (point.is_disturbed || point.is_unranked ? "x-thin-open" : style.symbol)) },
        error_y: { type: "data", symmetric: false, array: points.map((point) => ci(point, 1)), arrayminus: points.map((point) => ci(point, 0)), color: style.colour, thickness: 1, width: 3, visible: kind === "speedup" },
        hovertext: points.map((point) => [line.method, `batch ${point.batch_size}`, `${rate(point.tokens_per_s)} tokens/s`, ...(point.speedup === null ? [] : [`${times(point.speedup)} ${interval(point.speedup_ci)}`]), ...(point.is_disturbed ? ["the A/A control failed"] : []), ...(point.is_unranked ? ["may not be ranked"] : [])].map(plain).join("<br>")), hoverinfo: "text",
      };
    });
    const chart = el("div");
    mount.append(el("div", {}, el("h3", {}, title), chart));
    draw(chart, `${title} by batch size`, traces, baseLayout(280, {
      margin: { l: 52, r: 10, t: 8, b: 40 },
      xaxis: { type: "log", tickvals: sizes, ticktext: sizes.map(String), title: { text: "batch size", standoff: 6 } },
      yaxis: { rangemode: "tozero", ticksuffix: suffix, nticks: 6 },
      shapes: kind === "speedup" ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: css("--muted"), width: 1.2, dash: "dash" } }] : [],
    }));
  }
}

const stepMs = (row, phase) => 1000 * row.waterfall[phase + "_s"];
const perToken = (row, phase) => stepMs(row, phase) / row.acceptance_length;
const timed = (scope) => scope.rows.filter((row) => row.waterfall && row.acceptance_length && !row.is_control);

function figPhases(mount, scope) {
  const rows = timed(scope);
  if (!rows.length) return nothing(mount, "No phase times in these rows.");
  const legend = el("ul", { class: "legend" });
  for (const [phase, label] of PHASES) {
    const swatch = svg("svg", { width: 12, height: 12, class: "mark" }, svg("rect", { width: 12, height: 12, rx: 2, style: `fill: var(--p-${phase})` }));
    legend.append(el("li", {}, swatch, label));
  }
  const traces = PHASES.map(([phase, label, shape]) => ({
    type: "bar", orientation: "h", name: label, y: rows.map((_, i) => i), x: rows.map((row) => perToken(row, phase)), width: 0.62,
    marker: { color: css("--p-" + phase), pattern: { shape, size: 6, solidity: 0.18, fgcolor: css("--bg"), bgcolor: css("--p-" + phase) }, line: { color: css("--bg"), width: 0.6 } },
    hovertext: rows.map((row) => `${plain(row.method)}<br>${label}: ${perToken(row, phase).toFixed(3)} ms per token, ${stepMs(row, phase).toFixed(3)} ms per step`), hoverinfo: "text",
  }));
  const totals = rows.map((row) => PHASES.reduce((sum, [phase]) => sum + perToken(row, phase), 0));
  const chart = el("div");
  mount.replaceChildren(el("h3", {}, "Milliseconds per committed token, decode"), legend, chart);
  return draw(chart, "where the time goes", traces, baseLayout(rowPixels(rows.map((row) => row.method), 30) * rows.length + 46, {
    barmode: "stack",
    margin: { l: NAMES_PX, r: 66, t: 8, b: 30 },
    xaxis: { range: [0, Math.max(...totals) * 1.02], nticks: 6 },
    yaxis: { tickvals: rows.map((_, i) => i), ticktext: rows.map((row) => fitName(row.method)), range: [rows.length - 0.5, -0.5], showgrid: false },
    annotations: totals.map((total, i) => ({ xref: "paper", x: 1, xanchor: "left", xshift: 8, y: i, showarrow: false, text: total.toPrecision(3) + " ms", font: { size: 12 } })),
  }));
}

// tau, then the measured terms one after the other: tau*T_ar/T_ar -> /T_verify -> /(T_verify+T_draft) -> /(... + rest) = decode speed-up.
function waterfallSteps(row) {
  const w = row.waterfall;
  const base = w.ar_s;
  const tau = row.acceptance_length;
  const stages = [["verify", w.verify_s], ["draft", w.draft_s], ["accept, commit, other", w.accept_s + w.commit_s + w.other_s]];
  const steps = [{ label: "τ", value: tau, absolute: true }];
  let spent = 0;
  let before = tau;
  for (const [label, seconds] of stages) {
    spent += seconds;
    const after = (tau * base) / spent;
    steps.push({ label, value: after - before, seconds });
    before = after;
  }
  steps.push({ label: "decode speed-up", value: before, total: true });
  return steps;
}

function figWaterfall(mount, scope, method) {
  const row = timed(scope).find((r) => r.method === method);
  if (!row) return nothing(mount, "No method with phase times beside a baseline in the same run.");
  const steps = waterfallSteps(row);
  const trace = {
    type: "waterfall", orientation: "v", x: steps.map((s) => s.label), y: steps.map((s) => (s.total ? 0 : s.value)), measure: steps.map((s) => (s.absolute ? "absolute" : s.total ? "total" : "relative")),
    text: steps.map((s) => (s.absolute || s.total ? s.value.toFixed(2) : (s.value >= 0 ? "+" : "−") + Math.abs(s.value).toFixed(2))), textposition: "outside", cliponaxis: false, width: 0.6,
    connector: { line: { color: css("--muted"), width: 1, dash: "dot" } },
    increasing: { marker: { color: css("--p-accept") } }, decreasing: { marker: { color: css("--p-draft") } }, totals: { marker: { color: css("--base") } },
    hovertext: steps.map((s) => (s.seconds === undefined ? `${s.label}: ${s.value.toFixed(3)}` : `${s.label}: ${(1000 * s.seconds).toFixed(3)} ms per step<br>baseline step ${(1000 * row.waterfall.ar_s).toFixed(3)} ms`)), hoverinfo: "text",
  };
  const highest = Math.max(...steps.map((s) => s.value), (row.acceptance_length * row.waterfall.ar_s) / row.waterfall.verify_s);
  return draw(mount, `waterfall ${row.method}`, [trace], baseLayout(300, {
    margin: { l: 44, r: 10, t: 14, b: 60 },
    xaxis: { showgrid: false, tickangle: 0, ticktext: steps.map((s) => s.label.replaceAll(", ", "<br>").replace("decode ", "decode<br>")), tickvals: steps.map((s) => s.label) },
    yaxis: { range: [0, highest * 1.16], ticksuffix: "×", nticks: 6 },
    shapes: [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: 1, y1: 1, line: { color: css("--muted"), width: 1.2, dash: "dash" } }],
  }));
}

const drafting = (scope) => scope.rows.filter((row) => row.acceptance_by_position && row.acceptance_by_position.survival.length);

function figAcceptance(mount, scope) {
  const rows = drafting(scope);
  if (!rows.length) return nothing(mount, "No method here drafts anything.");
  const legend = el("ul", { class: "legend" });
  for (const row of rows) legend.append(el("li", {}, markOf(row.method), row.method));
  mount.replaceChildren(legend);
  const deepest = Math.max(...rows.map((row) => row.acceptance_by_position.survival.length));
  for (const [kind, title] of [["conditional", "Conditional acceptance"], ["survival", "Survival"], ["proposed", "Coverage"]]) {
    const traces = rows.map((row) => {
      const values = row.acceptance_by_position[kind];
      const covered = row.acceptance_by_position.proposed;
      const style = look(row.method);
      return {
        type: "scatter", mode: "lines+markers", x: values.map((_, i) => i + 1), y: values, connectgaps: false,
        line: { color: style.colour, width: 2, dash: style.dash },
        marker: { color: style.colour, size: 8, symbol: values.map((_, i) => style.symbol + (covered[i] < 0.05 ? "-open" : "")) },
        hovertext: values.map((value, i) => `${plain(row.method)}<br>depth ${i + 1}: ${percent(value)}<br>proposed in ${percent(covered[i])} of steps`), hoverinfo: "text",
      };
    });
    const chart = el("div");
    mount.append(el("div", {}, el("h3", {}, title), chart));
    draw(chart, title, traces, baseLayout(250, {
      margin: { l: 46, r: 10, t: 8, b: 40 },
      xaxis: { range: [0.6, deepest + 0.4], dtick: deepest > 10 ? 2 : 1, title: { text: "depth", standoff: 6 } },
      yaxis: { range: [-0.02, 1.04], tickformat: ".0%", dtick: 0.25 },
    }));
  }
}

function markOf(label) {
  const style = look(label);
  const shapes = {
    "circle": "M6 1a5 5 0 1 0 .01 0Z", "circle-open": "M6 1a5 5 0 1 0 .01 0Z", "square": "M1.5 1.5h9v9h-9Z", "diamond": "M6 0l6 6-6 6-6-6Z", "triangle-up": "M6 1l6 10H0Z",
    "star": "M6 0l1.5 4.1 4.4.2-3.4 2.7 1.2 4.3L6 8.9l-3.7 2.4 1.2-4.3L.1 4.300l4.4-.2Z", "hexagon": "M3 1h6l3 5-3 5H3L0 6Z", "cross": "M4 0h4v4h4v4H8v4H4V8H0V4h4Z", "triangle-down": "M0 1h12L6 11Z",
  };
  const paint = style.index < 0 ? "fill: none; stroke: var(--base); stroke-width: 1.6" : `fill: var(--c${style.index % 8})`;
  return svg("svg", { width: 12, height: 12, viewBox: "0 0 12 12", class: "mark", "aria-hidden": "true" }, svg("path", { d: shapes[style.symbol], style: paint }));
}
