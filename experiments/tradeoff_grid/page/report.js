"use strict";
// The page of experiments.tradeoff: no library, nothing from outside. `data` is written by page.py.
const data = JSON.parse(document.getElementById("data").textContent);
const cells = data.cells;
const scored = cells.some((c) => c.accuracy !== null);
const measured = cells.some((c) => c.distance !== null);
const HUES = ["#2f6fde", "#d9541e", "#1d9a6c", "#b03fa8", "#b58900", "#0f97b5", "#8a1538", "#6d7f1f", "#7a5be0", "#8d6748", "#e8709f", "#5c6670"];  // as in plot.py
const SHAPES = ["circle", "square", "triangle", "diamond"];
const samplers = unique(cells.map((c) => c.sampler));
const shown = { sampler: new Set(samplers), schedule: new Set(cells.map((c) => c.schedule)), guidance_scale: new Set(cells.map((c) => c.guidance_scale)) };
const state = { chosen: null, sort: scored ? "accuracy" : "distance", down: scored };
const tip = document.getElementById("tip");

function unique(values) { return [...new Set(values)]; }
function visible() { return cells.filter((c) => Object.keys(shown).every((key) => shown[key].has(c[key]))); }
function colour(sampler) { return HUES[samplers.indexOf(sampler) % HUES.length]; }
function shape(sampler) { const at = samplers.indexOf(sampler); return SHAPES[(at + Math.floor(at / HUES.length)) % SHAPES.length]; }
function label(c) { return `${c.sampler}, ${c.schedule}, ${c.steps} steps, scale ${c.guidance_scale}`; }
function percent(v) { return v === null ? "" : (100 * v).toFixed(1) + " %"; }
function seconds(v) { return v < 0.1 ? Number((1000 * v).toPrecision(2)) + " ms" : v.toFixed(2) + " s"; }
function short(v) { return v === null ? "" : v >= 10 ? v.toFixed(1) : v.toPrecision(3); }

function node(name, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "rect", "circle"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function outline(kind, x, y, r) {
  if (kind === "square") return `M${x - r} ${y - r}h${2 * r}v${2 * r}h${-2 * r}z`;
  if (kind === "triangle") return `M${x} ${y - 1.25 * r}L${x + 1.2 * r} ${y + r}H${x - 1.2 * r}z`;
  if (kind === "diamond") return `M${x} ${y - 1.4 * r}L${x + 1.4 * r} ${y}L${x} ${y + 1.4 * r}L${x - 1.4 * r} ${y}z`;
  return `M${x - r} ${y}a${r} ${r} 0 1 0 ${2 * r} 0a${r} ${r} 0 1 0 ${-2 * r} 0z`;
}

// ------------------------------------------------------------------ the Pareto front

function front(list, cost, quality) {
  let best = -Infinity;
  const kept = [];
  for (const c of [...list].sort((a, b) => cost(a) - cost(b) || quality(b) - quality(a))) {
    if (quality(c) > best) { best = quality(c); kept.push(c); }
  }
  return kept;
}

// ------------------------------------------------------------------ charts

const CHARTS = [
  { title: "Right pictures against network evaluations", x: "evaluations", y: "accuracy" },
  { title: "Right pictures against seconds a picture", x: "seconds", y: "accuracy" },
  { title: "Distance to the reference against network evaluations", x: "evaluations", y: "distance" },
  { title: "Distance to the reference against seconds a picture", x: "seconds", y: "distance" },
].filter((chart) => (chart.y === "accuracy" ? scored : measured)).filter((chart) => chart.x !== "seconds" || data.timed);
const WIDTH = 560, HEIGHT = 360, LEFT = 56, RIGHT = 14, TOP = 14, BOTTOM = 44;

function logarithmic(values, from, to) {
  const low = Math.log(Math.min(...values)) - 0.12, high = Math.log(Math.max(...values)) + 0.12;
  const at = (v) => from + ((Math.log(v) - low) / (high - low || 1)) * (to - from);
  const ticks = [];
  for (let e = Math.floor(low / Math.LN10) - 1; e <= high / Math.LN10 + 1; e++) {
    for (const m of high - low > 5 ? [1] : [1, 2, 5]) {
      const v = m * 10 ** e;
      if (Math.log(v) >= low && Math.log(v) <= high) ticks.push(v);
    }
  }
  return { at, ticks };
}

function scales(chart, list) {
  const x = logarithmic(list.map((c) => c[chart.x]), LEFT, WIDTH - RIGHT);
  if (chart.x === "evaluations") x.ticks = unique(list.map((c) => c.evaluations)).length > 14 ? x.ticks : unique(list.map((c) => c.evaluations)).sort((a, b) => a - b);
  if (chart.y === "distance") return [x, logarithmic(list.map((c) => c.distance), HEIGHT - BOTTOM, TOP)];
  const at = (v) => HEIGHT - BOTTOM + v * (TOP + BOTTOM - HEIGHT);
  return [x, { at, ticks: [0, 0.2, 0.4, 0.6, 0.8, 1] }];
}

function axes(chart, x, y) {
  const g = node("g");
  const tick = (v) => (chart.y === "accuracy" ? `${Math.round(100 * v)} %` : Number(v.toPrecision(2)).toString());
  for (const v of y.ticks) {
    g.append(node("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y.at(v), y2: y.at(v) }));
    g.append(node("text", { x: LEFT - 8, y: y.at(v) + 4, "text-anchor": "end" }, tick(v)));
  }
  let free = -Infinity;
  for (const v of x.ticks) {
    g.append(node("line", { class: "grid", y1: TOP, y2: HEIGHT - BOTTOM, x1: x.at(v), x2: x.at(v) }));
    if (x.at(v) < free) continue;
    free = x.at(v) + 26;
    g.append(node("text", { x: x.at(v), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, Number(v.toPrecision(3)).toString()));
  }
  const name = chart.x === "seconds" ? "seconds a picture" : "network evaluations a picture";
  g.append(node("text", { x: (LEFT + WIDTH - RIGHT) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, name));
  return g;
}

function families(list) {
  const found = new Map();
  for (const c of list) {
    const key = `${c.sampler}|${c.schedule}|${c.guidance_scale}`;
    if (!found.has(key)) found.set(key, []);
    found.get(key).push(c);
  }
  return [...found.values()].map((family) => family.sort((a, b) => a.steps - b.steps));
}

function drawn(chart) {
  const list = visible().filter((c) => c[chart.y] !== null && c[chart.x] > 0 && (chart.y === "accuracy" || c.distance > 0));
  const svg = node("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, tabindex: 0, role: "application", "data-chart": `${chart.y}-${chart.x}`,
    "aria-label": `${chart.title}. Arrow keys go from point to point, Enter shows the pictures.`,
  });
  if (!list.length) {
    svg.append(node("text", { x: WIDTH / 2, y: HEIGHT / 2, "text-anchor": "middle" }, "nothing is chosen above"));
    return svg;
  }
  const [x, y] = scales(chart, list);
  const place = (c) => [x.at(c[chart.x]), y.at(c[chart.y])];
  const best = front(list, (c) => c[chart.x], (c) => (chart.y === "distance" ? -c.distance : c.accuracy));
  svg.append(axes(chart, x, y));
  for (const family of families(list)) {
    svg.append(node("path", { class: "series", stroke: colour(family[0].sampler), "data-sampler": family[0].sampler, d: "M" + family.map(place).join("L") }));
  }
  svg.append(node("path", { class: "front", d: best.map((c, i) => (i ? `H${place(c)[0]}V${place(c)[1]}` : `M${place(c)}`)).join("") }));
  for (const c of list) {
    svg.append(node("path", {
      class: best.includes(c) ? "mark best" : "mark", fill: colour(c.sampler), d: outline(shape(c.sampler), ...place(c), 4.2),
      "data-cell": c.name, "data-sampler": c.sampler, onclick: () => choose(c),
      onpointerenter: (event) => point(svg, chart, c, place, event.clientX, event.clientY), onpointerleave: () => leave(svg),
    }));
  }
  svg.append(node("g", { class: "over" }));
  svg.addEventListener("keydown", (event) => walk(event, svg, chart, list, place));
  svg.addEventListener("blur", () => leave(svg));
  if (list.includes(state.chosen)) ring(svg, chart, state.chosen, place, y);
  return svg;
}

function ring(svg, chart, c, place) {
  const over = svg.querySelector(".over");
  const [cx, cy] = place(c);
  over.replaceChildren(node("circle", { class: "here", cx, cy, r: 9 }));
  if (chart.y === "accuracy") {
    const at = (v) => HEIGHT - BOTTOM + v * (TOP + BOTTOM - HEIGHT);
    over.append(node("line", { class: "bar", x1: cx, x2: cx, y1: at(c.accuracy_low), y2: at(c.accuracy_high) }));
  }
}

function told(c) {
  const lines = [label(c)];
  if (c.accuracy !== null) lines.push(`${c.correct} of ${c.pictures} right, ${percent(c.accuracy)} (${percent(c.accuracy_low)} to ${percent(c.accuracy_high)})`);
  if (c.distance !== null) lines.push(`distance ${short(c.distance)}`);
  lines.push(`${c.evaluations} evaluations, ${seconds(c.seconds)} a picture`);
  return lines.join("\n");
}

function point(svg, chart, c, place, left, top) {
  svg.current = c;
  tip.textContent = told(c);
  tip.hidden = false;
  tip.style.left = Math.min(left + 14, innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = Math.max(8, top - tip.offsetHeight - 12) + "px";
  for (const mark of svg.querySelectorAll("[data-sampler]")) mark.classList.toggle("dim", mark.dataset.sampler !== c.sampler);
  ring(svg, chart, c, place);
}

function leave(svg) {
  tip.hidden = true;
  for (const mark of svg.querySelectorAll(".dim")) mark.classList.remove("dim");
}

function walk(event, svg, chart, list, place) {
  const groups = families(list);
  const row = Math.max(0, groups.findIndex((g) => g.includes(svg.current || state.chosen)));
  const at = Math.max(0, groups[row].indexOf(svg.current || state.chosen));
  const go = { ArrowRight: [row, at + 1], ArrowLeft: [row, at - 1], ArrowDown: [row + 1, at], ArrowUp: [row - 1, at] }[event.key];
  if (event.key === "Enter" && svg.current) return choose(svg.current);
  if (event.key === "Escape") return leave(svg);
  if (!go) return;
  event.preventDefault();
  const group = groups[(go[0] + groups.length) % groups.length];
  const c = svg.current ? group[Math.min(Math.max(go[1], 0), group.length - 1)] : groups[0][0];
  const box = svg.getBoundingClientRect();
  const [x, y] = place(c);
  point(svg, chart, c, place, box.left + (x * box.width) / WIDTH, box.top + (y * box.height) / HEIGHT);
}

// ------------------------------------------------------------------ the chosen cell

function choose(c) {
  state.chosen = c;
  const held = document.activeElement;
  const [chart, cell] = [held.dataset.chart, held.closest("tr")?.dataset.cell];
  const place = document.getElementById("cell");
  const pictures = c.images.map((source, i) => {
    const verdict = c.right ? (c.right[i] ? node("span", { class: "yes" }, "✓ right: ") : node("span", { class: "no" }, "✗ wrong: ")) : "";
    return node("div", {}, node("img", { src: source, alt: data.prompts[i], width: 128 }), verdict, data.prompts[i]);
  });
  const errors = Object.entries(c.errors || {}).sort((a, b) => b[1] - a[1]).map(([kind, n]) => `${kind} ${n}`);
  place.replaceChildren(
    node("h2", {}, label(c)),
    node("p", { class: "note" }, told(c).split("\n").slice(1).join("; ") + (errors.length ? `. What was wrong: ${errors.join(", ")}.` : ".")),
    node("div", { class: "pictures" }, ...pictures),
  );
  charts();
  table();
  if (chart) {
    const svg = document.querySelector(`[data-chart="${chart}"]`);
    svg.current = c;
    svg.focus();
  }
  if (cell) document.querySelector(`tr[data-cell="${CSS.escape(cell)}"] button`).focus({ preventScroll: true });
}

// ------------------------------------------------------------------ the table

const COLUMNS = [
  ["sampler", "sampler"], ["schedule", "schedule"], ["steps", "steps"], ["guidance_scale", "scale"], ["evaluations", "evaluations"],
  ["seconds", "seconds"], ["accuracy", "right"], ["distance", "distance"], ["stochastic", "fresh noise"],
].filter(([key]) => (key !== "accuracy" || scored) && (key !== "distance" || measured));

function compare(a, b) {
  const [left, right] = [a[state.sort], b[state.sort]];
  if (left === null || right === null) return (left === null) - (right === null);
  const order = typeof left === "string" ? left.localeCompare(right) : left - right;
  return (state.down ? -order : order) || a.evaluations - b.evaluations;
}

function written(c, key, best) {
  if (key === "sampler") return node("td", {}, node("button", { onclick: () => choose(c) }, c.sampler));
  if (key === "accuracy") return node("td", { class: "n" }, `${best ? "◆ " : ""}${percent(c.accuracy)} (${percent(c.accuracy_low)} to ${percent(c.accuracy_high)})`);
  if (key === "seconds") return node("td", { class: "n" }, Number(c.seconds.toPrecision(3)));
  if (key === "distance") return node("td", { class: "n" }, `${short(c.distance)}${c.failed ? ` (${c.failed} not finite)` : ""}`);
  if (key === "stochastic") return node("td", {}, c.stochastic ? "yes" : "");
  return node("td", { class: typeof c[key] === "number" ? "n" : null }, String(c[key]));
}

function table() {
  const list = visible().sort(compare);
  const quality = scored ? (c) => c.accuracy : (c) => -(c.distance ?? Infinity);
  const best = new Set(front(list, (c) => c.evaluations, quality));
  const heads = COLUMNS.map(([key, title]) => {
    const sorted = state.sort === key;
    const turn = () => { state.down = sorted ? !state.down : key === "accuracy"; state.sort = key; table(); document.querySelector(`th[data-key=${key}] button`).focus(); };
    const numeric = cells.length && typeof cells[0][key] === "number";
    return node("th", { "data-key": key, class: numeric ? "n" : null, "aria-sort": sorted ? (state.down ? "descending" : "ascending") : "none" },
      node("button", { onclick: turn }, title + (sorted ? (state.down ? " ↓" : " ↑") : "")));
  });
  const rows = list.map((c) => node("tr", { "data-cell": c.name, class: c === state.chosen ? "chosen" : null, onclick: () => choose(c) },
    ...COLUMNS.map(([key]) => written(c, key, best.has(c)))));
  document.getElementById("table").replaceChildren(node("thead", {}, node("tr", {}, ...heads)), node("tbody", {}, ...rows));
}

// ------------------------------------------------------------------ filters, and all together

function chips(key, title) {
  const values = unique(cells.map((c) => c[key]));
  if (values.length < 2) return "";
  const all = node("button", { class: "chip", onclick: () => { const full = shown[key].size === values.length; shown[key] = new Set(full ? [] : values); everything(); } }, "\u00a0all / none");
  const made = values.map((value) => {
    const flip = () => { shown[key].has(value) ? shown[key].delete(value) : shown[key].add(value); everything(); document.querySelector(`[data-chip="${key}=${value}"]`).focus(); };
    const mark = key === "sampler" ? node("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, node("path", { fill: colour(value), d: outline(shape(value), 8, 8, 5) })) : "\u00a0";
    return node("button", { class: "chip", "data-chip": `${key}=${value}`, "aria-pressed": shown[key].has(value), onclick: flip }, mark, String(value));
  });
  return node("fieldset", {}, node("legend", {}, title), ...made, all);
}

function charts() {
  document.getElementById("charts").replaceChildren(...CHARTS.map((chart) => node("figure", {}, node("figcaption", {}, chart.title), drawn(chart))));
}

function everything() {
  tip.hidden = true;
  document.getElementById("filters").replaceChildren(chips("sampler", "Samplers"), chips("schedule", "Schedules"), chips("guidance_scale", "Guidance scale"));
  charts();
  table();
}

document.getElementById("about").textContent = data.about;
document.getElementById("method").replaceChildren(...data.method.map((line) => node("li", {}, line)));
everything();
if (cells.length) choose(front(cells, (c) => c.evaluations, (c) => (scored ? c.accuracy : -(c.distance ?? Infinity))).pop() || cells[0]);
