// Figures: each when it comes near the screen, and all of them, at the paper's width, before the page is printed.

const FIGURES = {
  speedup: (mount, scope) => figSpeedup(mount, scope),
  scatter: (mount, scope) => figScatter(mount, scope),
  efficiency: (mount, scope) => figEfficiency(mount, scope),
  phases: (mount, scope) => figPhases(mount, scope),
  waterfall: (mount, scope) => figWaterfall(mount, scope, byId("waterfall-method").value),
  batches: (mount, scope) => figBatches(mount, scope),
  acceptance: (mount, scope) => figAcceptance(mount, scope),
  streams: (mount, scope) => figStreams(mount, scope),
};
const drawn = new Set();
let whyNoLibrary = null;

// The library travels gzipped in the page. An inline script is what the page's policy allows, so the inflated text
// becomes one.
function startLibrary() {
  const script = document.createElement("script");
  const letters = atob(byId("library").textContent.trim());
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < packed.length; i += 1) packed[i] = letters.charCodeAt(i);
  script.textContent = new TextDecoder().decode(gunzip(packed));
  document.head.append(script);
  if (typeof Plotly === "undefined") throw new Error("the chart library did not start");
}

function drawFigure(mount) {
  drawn.add(mount);
  try {
    if (whyNoLibrary) throw whyNoLibrary;
    if (typeof Plotly === "undefined") startLibrary();
  } catch (error) {
    whyNoLibrary = error;
    nothing(mount, `No figure: ${error.message}. The tables hold every number.`);
    return;
  }
  FIGURES[mount.dataset.figure](mount, currentScope());
}

const redraw = () => drawn.forEach(drawFigure);

function watchFigures() {
  const mounts = document.querySelectorAll("[data-figure]");
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      watcher.unobserve(entry.target);
      if (drawn.has(entry.target)) continue;
      nothing(entry.target, "Drawing…");
      // Inflating takes a while: what is there already is painted first.
      setTimeout(() => drawn.has(entry.target) || drawFigure(entry.target));
    }
  }, { rootMargin: "900px 0px" });
  mounts.forEach((mount) => watcher.observe(mount));
  addEventListener("beforeprint", () => drawForPaper(mounts));
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    applyTheme();
    redraw();
  });
}

// Everything here is done before it returns: a browser prints the page as it stands then.
function drawForPaper(mounts) {
  document.documentElement.classList.add("printing");
  document.documentElement.dataset.theme = "light";
  mounts.forEach(drawFigure);
  if (whyNoLibrary) for (const tables of document.querySelectorAll("section details:has(table)")) tables.open = true;
  // Figures shrink with a narrower paper instead of running over its edge.
  for (const part of document.querySelectorAll(".main-svg")) {
    part.setAttribute("viewBox", `0 0 ${part.getAttribute("width")} ${part.getAttribute("height")}`);
    part.setAttribute("preserveAspectRatio", "xMinYMin meet");
  }
}
