// Acceptance along a stream: methods that learn between answers, the rounds of learning in their places.

const signed = (value) => (value === null || value === undefined ? NONE : (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3));
const streamName = (scope, curve) => (scope.runs.length > 1 ? `${curve.method} (${curve.run_id})` : curve.method);

function figStreams(mount, scope) {
  if (!scope.streams.length) return nothing(mount, "Nothing learns here.");
  const legend = el("ul", { class: "legend" });
  for (const curve of scope.streams) legend.append(el("li", {}, markOf(curve.method), streamName(scope, curve)));
  const traces = scope.streams.map((curve) => {
    const style = look(curve.method);
    const end = (point, side) => (point.acceptance_ci ? Math.abs(point.acceptance_ci[side] - point.acceptance) : 0);
    return {
      type: "scatter", mode: "lines+markers", x: curve.points.map((p) => (p.since + p.until) / 2), y: curve.points.map((p) => p.acceptance),
      line: { color: style.colour, width: 2, dash: style.dash }, marker: { color: style.colour, size: 8, symbol: style.symbol },
      error_y: { type: "data", symmetric: false, array: curve.points.map((p) => end(p, 1)), arrayminus: curve.points.map((p) => end(p, 0)), color: style.colour, thickness: 1, width: 3 },
      hovertext: curve.points.map((p) => [streamName(scope, curve), `positions ${p.since} to ${p.until}`, `${p.num_accepted} of ${p.num_tried} accepted: ${percent(p.acceptance)}`, ...(p.acceptance_ci ? [`${percent(p.acceptance_ci[0])} to ${percent(p.acceptance_ci[1])}`] : [])].map(plain).join("<br>")), hoverinfo: "text",
    };
  });
  const ends = scope.streams.flatMap((curve) => curve.points.flatMap((p) => p.acceptance_ci || [p.acceptance]));
  const [low, high] = [Math.max(0, Math.min(...ends) - 0.02), Math.min(1, Math.max(...ends) + 0.02)];
  const shapes = [];
  for (const curve of scope.streams) {
    const swaps = curve.changes.filter((change) => change.is_swap && !change.is_regrown);
    const style = look(curve.method);
    for (const swap of swaps) shapes.push({ type: "line", x0: swap.at, x1: swap.at, yref: "paper", y0: 0, y1: 1, line: { color: style.colour, width: 1, dash: "dash" } });
    if (swaps.length) traces.push({
      type: "scatter", mode: "markers", x: swaps.map((s) => s.at), y: swaps.map(() => low), cliponaxis: false,
      marker: { color: style.colour, size: 11, symbol: swaps.map((s) => (s.outcome === "rolled back" ? "triangle-left" : "triangle-up")) },
      hovertext: swaps.map((s) => [streamName(scope, curve), ...s.words.split("; ")].map(plain).join("<br>")), hoverinfo: "text",
    });
  }
  const chart = el("div");
  mount.replaceChildren(legend, chart);
  return draw(chart, "acceptance along the stream", traces, baseLayout(320, {
    margin: { l: 52, r: 14, t: 10, b: 44 }, shapes,
    xaxis: { rangemode: "tozero", title: { text: "drafted positions tried, in one repeat", standoff: 8 }, nticks: 8 },
    yaxis: { range: [low, high], tickformat: ".0%", nticks: 7 },
  }));
}

function drawStreams(scope) {
  byId("streams").hidden = !scope.streams.length;
  if (!scope.streams.length) return;
  const text = (id, head, wide) => ({ id, head, kind: "text", key: (r) => r[id], cell: (r) => r[id] || NONE, class: wide ? "wrapped" : "" });
  const number = (id, head, show) => ({ id, head, key: (r) => r[id], cell: (r) => show(r[id]) });
  const all = (part) => scope.streams.flatMap((curve) => curve[part].map((each) => ({ ...each, method: streamName(scope, curve) })));
  const changes = all("changes");
  const several = (id, column) => (new Set(changes.map((change) => change[id])).size > 1 ? [column] : []);
  sortableTable(byId("tab-changes"), [
    ...several("method", text("method", "Method", true)), { ...number("repeat", "Repeat", whole), cell: (r) => whole(r.repeat + 1) }, number("at", "After positions", whole), ...several("domain", text("domain", "Domain")), text("outcome", "Outcome"),
    number("version", "Version", whole), { ...number("previous", "From", whole), title: "Drafted with until then; 0 is the draft model itself" },
    { id: "gain", head: "Gain", title: "Expected acceptance on held-out positions, after − before", key: (r) => (r.after === null ? null : r.after - r.before), cell: (r) => (r.after === null ? NONE : signed(r.after - r.before)), class: "main" },
    { id: "gain_ci", head: "95 % interval", key: (r) => r.gain_ci && r.gain_ci[0], cell: (r) => (r.gain_ci ? `[${signed(r.gain_ci[0])}, ${signed(r.gain_ci[1])}]` : NONE), class: "soft" },
    number("num_held_out", "Held out", whole), number("num_steps", "Steps", whole), { ...number("seconds", "Seconds", fixed(1)), cell: (r) => fixed(1)(r.seconds) + (r.is_concurrent ? " beside" : "") },
    { ...text("why", "Why", true), cell: (r) => (r.is_regrown ? "regrown after an interruption: " : "") + r.why },
  ], changes, { caption: "Rounds of learning and ways back" });
  sortableTable(byId("tab-versions"), [
    text("method", "Method", true), text("domain", "Domain"), number("version", "Version", whole), number("num_positions", "Observed positions", whole), number("acceptance", "Accepted", percent),
    { ...number("overlap", "Σ min(p, q)", percent), title: "Mean over observed positions at temperature 1" },
  ], all("versions"), { caption: "What each adapter version's drafts came to, over observed positions; the questions differ" });
  sortableTable(byId("tab-streams"), [
    text("method", "Method", true), number("since", "From", whole), number("until", "To", whole), number("num_tried", "Tried", whole), number("num_accepted", "Accepted", whole), number("acceptance", "Acceptance", percent),
    { id: "ci", head: "95 % interval", key: (r) => r.acceptance_ci && r.acceptance_ci[0], cell: (r) => (r.acceptance_ci ? `${percent(r.acceptance_ci[0])} to ${percent(r.acceptance_ci[1])}` : NONE) },
  ], all("points"), { caption: "Acceptance along the stream" });
}
