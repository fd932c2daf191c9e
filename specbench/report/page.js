// The page: reads its data, keeps its state in the address (#scope=…&sort=…&theme=…), draws tables at once; figures.js
// draws the figures. Nothing here asks the network for anything.

const DATA = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));

function remember(changes) {
  Object.assign(state, changes);
  for (const [name, value] of Object.entries(state)) if (!value) delete state[name];
  const hash = new URLSearchParams(state).toString();
  history.replaceState(null, "", hash ? "#" + hash : location.pathname + location.search);
}

const currentScope = () => DATA.scopes.find((scope) => scope.key === state.scope) || DATA.scopes[0];

// ---- theme

const THEMES = ["auto", "light", "dark"];

function applyTheme() {
  const theme = THEMES.includes(state.theme) ? state.theme : "auto";
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = "Theme: " + theme;
}

// ---- the top: scope, one sentence, conditions

function drawScope(scope) {
  byId("lead").replaceChildren(...leadSentence(scope));
  byId("conditions").replaceWith(Object.assign(facts(scope.conditions), { id: "conditions" }));
  byId("meter").textContent = scope.meter;
  byId("ranking-notes").replaceChildren(...scope.remarks.map((remark) => el("li", { class: /fail/i.test(remark) ? "bad" : null }, remark)));
}

function leadSentence(scope) {
  const ranked = scope.rows.filter((row) => row.standing === "ranked" && !isBaseline(row));
  const plainRow = scope.rows.find(isBaseline);
  const strong = (text) => el("b", {}, text);
  const n = questions(scope.num_questions);
  // Too wide an interval takes the rank away, not the finding that all of it lies above 1.
  const wide = scope.rows.filter((row) => row.standing === "noisy" && row.speedup_ci && row.speedup_ci[0] > 1);
  const noisy = wide.length
    ? [" Too noisy to rank, yet faster by the whole of their intervals: ", ...wide.flatMap((row, i) => [i ? ", " : "", strong(row.method), ` ${times(row.speedup)} ${interval(row.speedup_ci)}`]), "."]
    : [];
  if (!ranked.length) return [`No method can be ranked on ${scope.suite} under these conditions; the table says why.`, ...noisy];
  const [first, ...others] = [...ranked].sort((a, b) => a.order - b.order);
  const ties = others.filter((row) => row.rank === first.rank);
  const words = (row) => `${times(row.speedup)} ${interval(row.speedup_ci)}`;
  const where = `On ${scope.suite} (${n}) with ${scope.target}, `;
  if (plainRow && plainRow.rank !== null && plainRow.rank <= first.rank) {
    return [where, strong("no ranked method was faster than plain decoding beyond its interval"), "; the nearest, ", strong(first.method), `, ran at ${words(first)} its speed.`, ...noisy];
  }
  const parts = [where, strong(first.method), ` ran at `, strong(words(first)), ` the speed of plain decoding`];
  if (ties.length) parts.push(`, tied with `, ...ties.flatMap((row, i) => [i ? " and " : "", strong(row.method), ` (${words(row)})`]));
  const rest = others.filter((row) => row.rank !== first.rank).slice(0, 2);
  if (rest.length) parts.push("; ", ...rest.flatMap((row, i) => [i ? "; " : "", strong(row.method), ` ${words(row)}`]));
  parts.push(".", ...noisy);
  return parts;
}

// ---- the ranking

function stripScale(scope) {
  const ends = scope.rows.flatMap((row) => (row.speedup_ci ? [row.speedup_ci[1]] : row.speedup ? [row.speedup] : []));
  const starts = scope.rows.flatMap((row) => (row.speedup_ci ? [row.speedup_ci[0]] : row.speedup ? [row.speedup] : []));
  const top = Math.max(1.25, ...ends) * 1.01;
  const low = Math.max(0, Math.min(0.9, ...starts) * 0.97);
  const width = 132;
  return { width, low, top, x: (value) => 6 + ((value - low) / (top - low)) * (width - 12) };
}

function strip(row, scale) {
  const text = `${times(row.speedup)} ${interval(row.speedup_ci)}`;
  const parts = [svg("line", { x1: scale.x(1), x2: scale.x(1), y1: 0, y2: 22, style: "stroke: var(--muted); stroke-dasharray: 3 2" })];
  const paint = row.kind === "baseline" ? "var(--base)" : `var(--c${DATA.methods.indexOf(row.method) % 8})`;
  if (row.speedup !== null) {
    if (row.speedup_ci) {
      const [low, high] = row.speedup_ci.map(scale.x);
      parts.push(svg("line", { x1: low, x2: high, y1: 11, y2: 11, style: `stroke: ${paint}; stroke-width: 2` }));
      for (const x of [low, high]) parts.push(svg("line", { x1: x, x2: x, y1: 7, y2: 15, style: `stroke: ${paint}; stroke-width: 1.5` }));
    }
    const hollow = row.standing !== "ranked";
    parts.push(svg("circle", { cx: scale.x(row.speedup), cy: 11, r: 3.2, style: hollow ? `fill: var(--bg); stroke: ${paint}; stroke-width: 1.8` : `fill: ${paint}` }));
  }
  return svg("svg", { width: scale.width, height: 22, role: "img", "aria-label": text }, ...parts);
}

function stripHead(scale) {
  const head = svg("svg", { width: scale.width, height: 16, "aria-label": "speed-up with its interval, on one scale" });
  const span = scale.top - scale.low;
  const step = span > 6 ? 2 : span > 2 ? 1 : span > 0.8 ? 0.5 : 0.25;
  let end = -Infinity;
  for (let value = Math.ceil(scale.low / step) * step; value <= scale.top; value += step) {
    const [text, x] = [value + "×", scale.x(value)];
    const wide = widthOf(text, 11);
    const [anchor, back] = x < 12 ? ["start", 0] : x > scale.width - 14 ? ["end", wide] : ["middle", wide / 2];
    // No tick over its neighbour's.
    if (x - back < end + 3) continue;
    end = x - back + wide;
    head.append(svg("text", { x, y: 12, "text-anchor": anchor, style: "font-size: 11px; fill: var(--muted); font-weight: 400" }, text));
  }
  return head;
}

function rankCell(row) {
  return row.standing === "ranked" ? row.rank_text : el("small", {}, row.rank_text);
}

function nameCell(row) {
  const name = el("span", {});
  for (const piece of row.method.split(/(?<=[\[,_/ #])/)) name.append(piece, el("wbr"));
  if (row.detail) name.append(el("small", {}, row.detail));
  return el("div", {}, markOf(row.method), name);
}

function count(row, kind) {
  if (!row.equality) return NONE;
  const value = row.equality[kind];
  const loud = kind === "bug" && row.is_broken;
  return el("span", { class: loud ? "bad" : value === 0 ? "zero" : null }, (loud ? "✗ " : "") + value);
}

function drawRanking(scope) {
  const scale = stripScale(scope);
  const columns = [
    { id: "rank", head: "Rank", kind: "text", key: (r) => r.order, cell: rankCell, class: "rank" },
    { id: "method", head: "Method", kind: "text", key: (r) => r.method, cell: nameCell, class: "name" },
    { id: "speedup", head: "Speed-up", first: "descending", key: (r) => r.speedup, cell: (r) => times(r.speedup), class: "main", title: "End to end, prefill included; geometric mean over questions" },
    { id: "interval", head: "95 % interval", first: "descending", key: (r) => (r.speedup_ci ? r.speedup_ci[0] : null), cell: (r) => interval(r.speedup_ci), class: "soft", title: "Bootstrap over questions; sorted by the lower end" },
    { id: "strip", fixed: true, head: () => stripHead(scale), kind: "strip text", cell: (r) => strip(r, scale), class: "strip" },
    { id: "decode", head: "Decode", first: "descending", key: (r) => r.speedup_decode, cell: (r) => times(r.speedup_decode), title: "Speed-up of pooled decode time, prefill left out" },
    { id: "tau", head: "τ", first: "descending", key: (r) => r.acceptance_length, cell: (r) => two(r.acceptance_length), title: "Acceptance length: tokens per step, bonus included" },
    { id: "eta", head: "η", first: "descending", key: (r) => r.efficiency, cell: (r) => two(r.efficiency), title: "Efficiency: decode speed-up ÷ τ" },
    { id: "tokens", head: "Tokens/s", first: "descending", key: (r) => r.tokens_per_s, cell: (r) => rate(r.tokens_per_s) },
    { id: "identical", head: "Identical", first: "descending", key: (r) => r.equality && r.equality.identical, cell: (r) => count(r, "identical"), title: "Generations equal to the reference, token for token" },
    { id: "tie", head: "Tie", first: "descending", key: (r) => r.equality && r.equality.tie, cell: (r) => count(r, "tie"), title: "Differs where two scores are closer than twice the noise floor" },
    { id: "numeric", head: "Num.", first: "descending", key: (r) => r.equality && r.equality.numeric, cell: (r) => count(r, "numeric"), title: "Differs as a plain forward in this dtype does" },
    { id: "bug", head: "Bug", first: "descending", key: (r) => r.equality && r.equality.bug, cell: (r) => count(r, "bug"), title: "Differs without an excuse" },
  ];
  if (scope.rows.some((row) => row.joules_per_token !== null)) {
    columns.push({ id: "energy", head: "J/token", key: (r) => r.joules_per_token, cell: (r) => (r.joules_per_token < 1 && r.joules_per_token !== null ? r.joules_per_token.toPrecision(3) : two(r.joules_per_token)), title: "Energy of the whole GPU per new token, prefill included, by the card's own counter" });
  }
  if (scope.rows.some((row) => row.accuracy !== null)) {
    columns.push({ id: "accuracy", head: "Accuracy", first: "descending", key: (r) => r.accuracy, cell: (r) => percent(r.accuracy), title: "Exact match with the suite's answers" });
  }
  columns.push({ id: "n", head: "Questions", first: "descending", key: (r) => r.num_questions, cell: (r) => `${r.num_questions} × ${r.num_repeats}`, class: "soft", title: "Questions × repeats" });
  sortableTable(byId("ranking-table"), columns, scope.rows, {
    caption: scope.title, quiet: true, sticky: true, sort: state.sort || "rank",
    onSort: (sort) => remember({ sort: sort === "rank" ? "" : sort }),
    rowClass: (row) => (row.standing === "ranked" ? "" : "quiet"), notes: (row) => row.notes,
  });
}

// ---- competitors that differ in one option

function drawContrasts(scope) {
  byId("contrasts").hidden = !scope.contrasts.length;
  if (!scope.contrasts.length) return;
  const text = (id, head) => ({ id, head, kind: "text", key: (r) => r[id], cell: (r) => r[id] });
  const name = (id, head) => ({ ...text(id, head), class: "wrapped" });
  const ratio = (id, head, title) => [
    { id, head, title, first: "descending", key: (r) => r[id], cell: (r) => times(r[id]), class: "main" },
    { id: id + "_ci", head: "95 % interval", first: "descending", key: (r) => r[id + "_ci"] && r[id + "_ci"][0], cell: (r) => interval(r[id + "_ci"]), class: "soft" },
  ];
  sortableTable(byId("contrast-table"), [
    name("method", "Method"), text("option", "Option"), text("value", "Value"), text("base_value", "Instead of"),
    ...ratio("acceptance_ratio", "τ", "Acceptance length ÷ that of the other, both pooled over steps"),
    ...ratio("speed_ratio", "Speed", "End-to-end speed ÷ that of the other, geometric mean over questions"),
    { id: "num_units", head: "Questions", first: "descending", key: (r) => r.num_units, cell: (r) => whole(r.num_units), class: "soft" },
  ], scope.contrasts, { caption: "What one option is worth", quiet: true, sticky: true });
}

// ---- throughput against batch size

function drawBatches(scope) {
  byId("batches").hidden = !scope.batches.length;
  if (!scope.batches.length) return;
  const sizes = batchSizes(scope);
  const at = (line, size) => line.points.find((point) => point.batch_size === size);
  const rateAt = (line, size) => (at(line, size) ? at(line, size).tokens_per_s : null);
  sortableTable(byId("tab-batches"), [
    { id: "method", head: "Method", kind: "text", key: (r) => r.method, cell: (r) => r.method, class: "wrapped" },
    ...sizes.map((size) => ({ id: "batch" + size, head: `Batch ${size}`, title: "Tokens per second of the whole batch, and the speed-up over plain decoding at that batch size", first: "descending", key: (r) => rateAt(r, size), cell: (r) => rate(rateAt(r, size)) + (at(r, size) && at(r, size).speedup !== null ? ` (${times(at(r, size).speedup)})` : "") })),
    { id: "crossing", head: "Even at", title: "Batch size at which the speed-up falls to 1, between two measured ones", key: (r) => r.crossing, cell: (r) => (r.crossing === null ? NONE : "≈ " + r.crossing.toPrecision(2)) },
    { id: "verdict", head: "By its intervals", kind: "text", key: (r) => r.verdict, cell: (r) => r.verdict || NONE, class: "wrapped" },
  ], scope.batches, { caption: "Tokens per second by batch size", quiet: true, sticky: true });
}

// ---- the numbers behind each figure

function drawNumbers(scope) {
  const cells = [];
  for (const row of measured(scope)) {
    cells.push({ method: row.method, category: "all", ...pick(row) });
    for (const cell of row.by_category) cells.push({ method: row.method, category: cell.category, ...pick(cell) });
  }
  const text = (id, head) => ({ id, head, kind: "text", key: (r) => r[id], cell: (r) => r[id] });
  const number = (id, head, show) => ({ id, head, first: "descending", key: (r) => r[id], cell: (r) => show(r[id]) });
  sortableTable(byId("tab-speedup"), [
    text("method", "Method"), text("category", "Category"), number("speedup", "Speed-up", times),
    { id: "ci", head: "95 % interval", key: (r) => r.ci && r.ci[0], cell: (r) => interval(r.ci) }, number("tau", "τ", two), number("n", "Questions", whole),
  ], cells, { caption: `Speed-up by category of ${scope.suite}` });

  const phaseRows = timed(scope).map((row) => ({ method: row.method, tau: row.acceptance_length, decode: row.speedup_decode, ...row.waterfall }));
  const ms = (id, head) => ({ id, head, first: "descending", key: (r) => r[id], cell: (r) => (r[id] === null || r[id] === undefined ? NONE : (1000 * r[id]).toFixed(3)) });
  sortableTable(byId("tab-phases"), [
    text("method", "Method"), ms("ar_s", "Baseline step"), ms("verify_s", "Verify"), ms("draft_s", "Draft"), ms("accept_s", "Accept"), ms("commit_s", "Commit"), ms("other_s", "Other"), ms("step_s", "Step"),
    number("tau", "τ", two), number("decode", "Decode speed-up", times), { ...number("bound_speedup", "Bound", times), title: "What draft and verify alone would allow" },
  ], phaseRows, { caption: "Milliseconds per step, pooled over questions and repeats" });

  const depths = [];
  for (const row of drafting(scope)) {
    const a = row.acceptance_by_position;
    a.survival.forEach((survival, i) => depths.push({ method: row.method, depth: i + 1, conditional: a.conditional[i], survival, coverage: a.proposed[i] }));
  }
  sortableTable(byId("tab-acceptance"), [text("method", "Method"), number("depth", "Depth", whole), number("conditional", "Conditional", percent), number("survival", "Survival", percent), number("coverage", "Coverage", percent)], depths, { caption: "Acceptance by depth" });
}

const pick = (cell) => ({ speedup: cell.speedup, ci: cell.speedup_ci, tau: cell.acceptance_length, n: cell.num_questions });

// ---- provenance

function drawRuns(scope) {
  const mount = byId("runs");
  mount.replaceChildren();
  for (const id of scope.runs) {
    const run = DATA.runs[id];
    const box = el("div", { class: "run" }, el("h3", {}, run.run_id + " ", el("span", { class: "tag" }, run.state)));
    box.append(facts(run.facts));
    box.append(el("p", { class: "sub", style: "margin: 12px 0 2px" }, "Reproduce:"), el("pre", {}, run.command));
    const more = el("details", {}, el("summary", {}, "Methods, versions, hashes"));
    sortableTable(more.appendChild(el("div")), [
      { id: "label", head: "Method", kind: "text", key: (m) => m.label, cell: (m) => m.label },
      { id: "kind", head: "Kind", kind: "text", key: (m) => m.kind, cell: (m) => m.kind },
      { id: "options", head: "Options", kind: "text", key: (m) => m.options, cell: (m) => m.options || NONE, class: "wrapped" },
      { id: "parameters", head: "Drafter parameters", key: (m) => m.num_parameters, cell: (m) => m.num_parameters.toLocaleString("en") },
      { id: "weights", head: "Weights", kind: "text", key: (m) => m.weights_hash, cell: (m) => (m.weights_hash ? el("code", {}, m.weights_hash.slice(0, 16)) : NONE) },
    ], run.methods, { caption: "Competitors of this run" });
    more.append(el("pre", {}, run.provenance));
    box.append(more);
    mount.append(box);
  }
}

function drawAllRuns() {
  const text = (id, head, wide) => ({ id, head, kind: "text", key: (r) => r[id], cell: (r) => r[id], class: wide ? "wrapped" : "" });
  const runs = Object.values(DATA.runs);
  sortableTable(byId("all-runs-table"), [
    { ...text("created", "Made (UTC)"), first: "descending", cell: (r) => r.created.slice(0, 16).replace("T", " ") }, text("suite", "Suite"), text("target", "Target"), text("device", "Device", true), text("conditions", "Conditions", true), text("method_list", "Methods", true), text("state", "State"), text("run_id", "Run"),
  ], runs, { caption: `${runs.length} run${runs.length === 1 ? "" : "s"}, newest first; conditions that differ are never ranked together`, sort: "-created" });
  byId("left-out").textContent = DATA.left_out;
}

function drawExternal() {
  const text = (id, head) => ({ id, head, kind: "text", key: (r) => r[id], cell: (r) => r[id] || NONE, class: "wrapped" });
  sortableTable(byId("external-table"), [
    text("method", "Method"), text("suite", "Suite"), text("target", "Target"),
    { id: "speedup", head: "Speed-up", first: "descending", key: (r) => r.speedup, cell: (r) => times(r.speedup) },
    { id: "interval", head: "95 % interval", first: "descending", key: (r) => (r.speedup_ci ? r.speedup_ci[0] : null), cell: (r) => interval(r.speedup_ci), class: "soft" },
    { id: "tau", head: "Tokens/step", first: "descending", key: (r) => r.tokens_per_step, cell: (r) => two(r.tokens_per_step) },
    { id: "tokens", head: "Tokens/s", first: "descending", key: (r) => r.tokens_per_s, cell: (r) => rate(r.tokens_per_s) },
    { id: "n", head: "Questions", first: "descending", key: (r) => r.num_questions, cell: (r) => whole(r.num_questions) },
    text("source", "File"),
  ], DATA.external, { caption: "As recorded by other programs, counted their way", notes: (row) => row.notes, rowClass: () => "quiet" });
}

// ---- all of it

function drawWaterfallChoice(scope) {
  const choice = byId("waterfall-method");
  const before = choice.value;
  const rows = timed(scope).filter((row) => !isBaseline(row));
  choice.replaceChildren(...rows.map((row) => el("option", { value: row.method }, row.method)));
  if (rows.some((row) => row.method === before)) choice.value = before;
}

function drawBoard() {
  const scope = currentScope();
  byId("scope").value = scope.key;
  drawScope(scope);
  drawRanking(scope);
  drawContrasts(scope);
  drawBatches(scope);
  drawStreams(scope);
  drawNumbers(scope);
  drawRuns(scope);
  drawWaterfallChoice(scope);
  redraw();
}

function start() {
  applyTheme();
  byId("theme").addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(state.theme || "auto") + 1) % 3];
    remember({ theme: next === "auto" ? "" : next });
    applyTheme();
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  byId("copy-link").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(location.href);
      byId("copy-link").textContent = "Copied";
    } catch {
      byId("copy-link").textContent = "Copy it from the address bar";
    }
    setTimeout(() => (byId("copy-link").textContent = "Copy link"), 2500);
  });
  byId("save-data").addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([byId("data").textContent], { type: "application/json" }));
    el("a", { href: url, download: "specbench-leaderboard.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  if (DATA.external.length) {
    byId("external").hidden = false;
    drawExternal();
  }
  if (!DATA.scopes.length) {
    byId("empty").hidden = false;
    return;
  }
  byId("board").hidden = false;
  byId("all-runs").hidden = false;
  for (const scope of DATA.scopes) byId("scope").append(el("option", { value: scope.key }, scope.title));
  byId("scope").addEventListener("change", () => {
    remember({ scope: byId("scope").value });
    drawBoard();
  });
  byId("waterfall-method").addEventListener("change", () => drawn.has(byId("fig-waterfall")) && drawFigure(byId("fig-waterfall")));
  addEventListener("hashchange", () => {
    for (const name of Object.keys(state)) delete state[name];
    Object.assign(state, Object.fromEntries(new URLSearchParams(location.hash.slice(1))));
    applyTheme();
    drawBoard();
  });
  drawBoard();
  drawAllRuns();
  watchFigures();
}

start();
