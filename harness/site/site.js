// The leaderboard: filters, sorts, searches and draws the rows of rows.js. No library, no request.
// The state of the view is in the address (#dataset=emoji&sort=rsum), so that a view can be linked.
"use strict";

const PAGE = 50; // rows on the screen at a time; print shows all
const root = document.body.dataset.root;
const rows = window.ROWS.rows
  .map(line => Object.fromEntries(line.map((value, i) => [window.ROWS.fields[i], value])))
  .filter(row => !document.body.dataset.method || row.method === document.body.dataset.method);
const element = id => document.getElementById(id);

// What is shown ------------------------------------------------------------------------------------

const yes = value => value === null ? "?" : value ? "yes" : "no";
const fixed = digits => value => value === null ? "–" : value.toFixed(digits);
const interval = row => row.low === null ? "–" : `${row.low.toFixed(1)} to ${row.high.toFixed(1)}`;
const seeds = row => row.n === null ? "–" : row.n === row.planned ? `${row.n}` : `${row.n} of ${row.planned}`;
const LEVELS = Object.fromEntries([...document.querySelectorAll("[name=level]")].map(
  (box, i) => [box.value, {box, rank: i, name: box.parentNode.firstElementChild.nextSibling.textContent.trim()}]));
const PUBLISHED = new Set(["published", "flagged"]); // of an epoch that their authors have selected
const RATIO = text => Number.isNaN(Number(text)) ? (text.startsWith("mean") ? 2 : 3) : Number(text);

// Columns: key, heading, what it means; `text` is what a cell says, `key` what it is sorted by.
const COLUMNS = [
  {id: "label", head: "method", text: row => row.label, cell: methodCell},
  {id: "level", head: "verified", text: row => LEVELS[row.level].name, key: row => LEVELS[row.level].rank, cell: levelCell},
  {id: "rsum", head: "rSum", about: "sum of the six recalls, last epoch", number: true, down: true},
  {id: "sd", head: "sd", about: "standard deviation of rSum over seeds", number: true},
  {id: "dataset", head: "data set"},
  {id: "noise", head: "noise", about: "noise model"},
  {id: "granularity", head: "granularity", about: "what moves to another image", text: row => row.granularity || "–"},
  {id: "ratio", head: "ratio", about: "nominal noise ratio", key: row => RATIO(row.ratio)},
  {id: "backbone", head: "backbone"},
  {id: "networks", head: "nets", about: "networks averaged at test", number: true, text: row => row.networks ?? "?"},
  {id: "clean", head: "clean", about: "uses clean data", text: row => yes(row.clean)},
  {id: "tuning", head: "settings", about: "how settings were chosen: tries are on dev, as many for each method of a search"},
  {id: "low", head: "95 % interval", about: "t interval of the mean rSum", number: true, text: interval},
  ...["i2t", "t2i"].flatMap(way => [1, 5, 10].map(k => (
    {id: `${way}_r${k}`, head: `${way} R@${k}`, about: way === "i2t" ? "image to text" : "text to image", number: true, down: true}))),
  {id: "selected", head: "dev-selected", about: "rSum of the epoch that is best on dev", number: true, down: true},
  {id: "n", head: "n", about: "seeds", number: true, text: seeds},
  {id: "seconds", head: "s/trial", about: "seconds of a trial, mean over seeds", number: true},
  {id: "origin", head: "from", about: "sweep, paper or program", cell: originCell},
];
for (const column of COLUMNS) {
  const {id, number} = column;
  column.text ??= number ? row => fixed(1)(row[id]) : row => row[id];
  column.key ??= number ? row => row[id] : column.text;
}

const FILTERS = [
  {id: "dataset", head: "data set"},
  {id: "noise", head: "noise model"},
  {id: "granularity", head: "granularity", of: row => row.granularity || "none"},
  {id: "ratio", head: "noise ratio", key: RATIO},
  {id: "network", head: "backbone"},
  {id: "networks", head: "networks at test", of: row => String(row.networks ?? "not reported")},
  {id: "clean", head: "clean data", of: row => row.clean === null ? "not reported" : yes(row.clean)},
  {id: "tuning", head: "choice of settings"},
];
for (const filter of FILTERS) filter.of ??= row => row[filter.id];

function node(name, text = "", attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function link(text, address, label) {
  return node("a", text, {href: address, ...(label && {"aria-label": label})});
}

function methodCell(row) {
  const name = `${row.label}${row.clean ? " †" : ""}${row.truth ? " ‡" : ""}`;
  return [document.body.dataset.method ? node("span", name) : link(name, `${root}methods/${row.page}.html`)];
}

function levelCell(row) {
  const badge = node("span", LEVELS[row.level].name.replace("as published and ", ""), {class: `badge ${row.level}`});
  return row.note ? [badge, node("small", row.note)] : [badge];
}

function originCell(row) {
  const of = `of ${row.label}, ${row.origin}`;
  const links = [
    row.report && link("report", inSite(row.report), `report ${of}`),
    row.bundle && link("bundle", inSite(row.bundle), `bundle ${of}`),
    row.table && link("table", inSite(row.table), `table of published rows, with the one ${of}`),
    row.source && link("source", `https://${row.source}`, `source ${of}`),
  ].filter(Boolean);
  const cited = row.cited ? [node("small", row.cited, {class: "cited"})] : [];
  return [node("span", row.origin, row.cited ? {title: row.cited} : {}), ...links, ...cited];
}

const inSite = address => root + address;

// State ----------------------------------------------------------------------------------------------

const state = {chosen: {}, levels: new Set(Object.keys(LEVELS)), text: "", sort: "", down: false, page: 0, setting: ""};

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  state.chosen = Object.fromEntries(FILTERS.map(f => [f.id, given.get(f.id) ?? ""]));
  state.levels = new Set(given.has("levels") ? given.get("levels").split(" ").filter(l => l in LEVELS) : Object.keys(LEVELS));
  state.text = given.get("q") ?? "";
  state.sort = COLUMNS.some(c => c.id === given.get("sort")) ? given.get("sort") : "";
  state.down = given.has("down");
  state.setting = given.get("plot") ?? "";
  state.page = 0;
}

function writeAddress() {
  const given = new URLSearchParams();
  for (const filter of FILTERS) if (state.chosen[filter.id]) given.set(filter.id, state.chosen[filter.id]);
  if (state.levels.size < Object.keys(LEVELS).length) given.set("levels", [...state.levels].join(" "));
  if (state.text) given.set("q", state.text);
  if (state.sort) given.set("sort", state.sort);
  if (state.down) given.set("down", "");
  if (state.setting) given.set("plot", state.setting);
  history.replaceState(null, "", `#${given}`);
}

// Filtering and sorting ------------------------------------------------------------------------------

const haystacks = rows.map(row => [
  row.label, row.method, row.dataset, row.noise, row.granularity, row.ratio, row.backbone, row.origin, row.note, row.cited, LEVELS[row.level].name,
].join(" ").toLowerCase());

const ranks = {}; // of each row by column: sorting compares numbers alone

function rankedBy(column) {
  if (!ranks[column.id]) {
    const keys = rows.map(column.key);
    if (keys.some(key => typeof key === "string")) {
      const compare = new Intl.Collator(undefined, {numeric: true}).compare;
      const place = new Map([...new Set(keys)].sort(compare).map((key, i) => [key, i]));
      ranks[column.id] = keys.map(key => place.get(key));
    } else ranks[column.id] = keys;
  }
  return ranks[column.id];
}

// Indices of the rows that pass; and for each filter, how many would pass with each of its values.
function filtered() {
  const words = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  const counts = Object.fromEntries([...FILTERS, {id: "level"}].map(f => [f.id, new Map()]));
  const passing = [];
  rows.forEach((row, i) => {
    if (!words.every(word => haystacks[i].includes(word))) return;
    const failed = FILTERS.filter(f => state.chosen[f.id] && f.of(row) !== state.chosen[f.id]).map(f => f.id);
    if (!state.levels.has(row.level)) failed.push("level");
    if (!failed.length) passing.push(i);
    if (failed.length < 2)
      for (const filter of failed.length ? [...FILTERS, LEVEL].filter(f => f.id === failed[0]) : [...FILTERS, LEVEL])
        counts[filter.id].set(filter.of(row), (counts[filter.id].get(filter.of(row)) ?? 0) + 1);
  });
  return {passing, counts};
}
const LEVEL = {id: "level", of: row => row.level};

function sorted(indices) {
  if (!state.sort) return indices;
  const key = rankedBy(COLUMNS.find(c => c.id === state.sort));
  const sign = state.down ? -1 : 1;
  return indices.sort((a, b) => (key[a] === null) - (key[b] === null) || sign * (key[a] - key[b]) || a - b);
}

// Drawing --------------------------------------------------------------------------------------------

function drawHead() {
  const line = node("tr", "", {role: "row"});
  for (const column of COLUMNS) {
    const head = node("th", "", {scope: "col", role: "columnheader", class: column.number ? "" : "text"});
    const button = node("button", column.head, {type: "button", ...(column.about && {title: column.about})});
    button.addEventListener("click", () => sortBy(column));
    head.append(button);
    line.append(head);
    column.node = head;
    element("sorting").append(node("option", column.head, {value: column.id}));
  }
  element("rows-table").tHead.replaceChildren(line);
}

function rowNode(row) {
  const line = node("tr", "", {role: "row", class: row.level});
  for (const column of COLUMNS) {
    const cell = node("td", "", {role: "cell", class: `${column.id} ${column.number ? "" : "text"}`, "data-head": column.head});
    if (column.cell) cell.append(...column.cell(row));
    else cell.textContent = column.text(row);
    if (cell.textContent === "–") cell.classList.add("none");
    cell.hidden = column.node.hidden;
    if (column.id === "seconds" && row.device) cell.title = row.device;
    line.append(cell);
  }
  return line;
}

let shown = []; // indices of all rows that pass, in their order

// A column without a value in any of the rows is left out: papers report no seeds and no cost.
function leaveOut() {
  for (const column of COLUMNS) column.node.hidden = shown.length > 0 && shown.every(i => column.text(rows[i]) === "–");
}

function drawRows(all = false) {
  const page = all ? shown : shown.slice(state.page * PAGE, (state.page + 1) * PAGE);
  element("rows-table").tBodies[0].replaceChildren(...page.map(i => rowNode(rows[i])));
  for (const column of COLUMNS) {
    if (column.id === state.sort) column.node.setAttribute("aria-sort", state.down ? "descending" : "ascending");
    else column.node.removeAttribute("aria-sort");
  }
}

function drawPager() {
  const pages = Math.ceil(shown.length / PAGE), pager = element("pager");
  pager.hidden = pages < 2;
  const button = (text, page, label) => {
    const made = node("button", text, {type: "button", "aria-label": label});
    made.disabled = page < 0 || page >= pages;
    made.addEventListener("click", () => {
      state.page = page;
      drawRows();
      drawPager();
      element("table").scrollIntoView();
      element("table").focus({preventScroll: true});
    });
    return made;
  };
  const last = Math.min(shown.length, (state.page + 1) * PAGE);
  pager.replaceChildren(
    button("‹ previous", state.page - 1, "previous page"),
    node("span", `rows ${state.page * PAGE + 1} to ${last} of ${shown.length}`),
    button("next ›", state.page + 1, "next page"));
}

function drawFilters(counts) {
  let active = 0;
  for (const filter of FILTERS) {
    const chosen = state.chosen[filter.id];
    const options = filter.values.map(value => {
      const count = counts[filter.id].get(value) ?? 0;
      const option = node("option", `${value} (${count})`, {value});
      option.disabled = !count && value !== chosen;
      return option;
    });
    filter.select.replaceChildren(node("option", "all", {value: ""}), ...options);
    if (chosen && !filter.values.includes(chosen)) filter.select.append(node("option", `${chosen} (0)`, {value: chosen}));
    filter.select.value = chosen;
    active += Boolean(chosen);
  }
  for (const [level, {box}] of Object.entries(LEVELS)) {
    box.checked = state.levels.has(level);
    box.parentNode.querySelector("small").textContent = counts.level.get(level) ?? 0;
  }
  active += state.levels.size < Object.keys(LEVELS).length;
  element("active").textContent = active ? `(${active})` : "";
  element("text").value = state.text;
  element("sorting").value = state.sort;
}

// What the rows on the page differ in, so that nobody ranks what cannot be ranked.
function drawStatus() {
  const differing = FILTERS.filter(f => f.id !== "clean" && new Set(shown.map(i => f.of(rows[i]))).size > 1).map(f => f.head);
  if (new Set(shown.map(i => PUBLISHED.has(rows[i].level))).size > 1) differing.push("the epoch that is tested");
  const given = FILTERS.filter(f => state.chosen[f.id]).map(f => `${f.head} ${state.chosen[f.id]}`);
  if (state.text) given.push(`“${state.text}”`);
  const count = `${shown.length} of ${rows.length} rows${given.length ? ` (${given.join(", ")})` : ""}.`;
  const warning = !shown.length ? "Nothing has all of this." :
    differing.length ? `They differ in ${differing.join(", ")}: no ranking.` : "";
  element("status").textContent = `${count} ${warning}`;
}

function update() {
  const {passing, counts} = filtered();
  shown = sorted(passing);
  leaveOut();
  drawRows();
  drawPager();
  drawFilters(counts);
  drawStatus();
  if (element("plot")) drawPlot();
}

function changed() {
  state.page = 0;
  writeAddress();
  update();
}

function sortBy(column) {
  const again = state.sort === column.id;
  state.down = again ? !state.down : Boolean(column.down);
  state.sort = column.id;
  changed();
}

// Accuracy against cost ------------------------------------------------------------------------------

const PLACE = ["dataset", "noise", "granularity", "ratio", "device"];
const placeOf = row => PLACE.map(key => row[key]).filter(Boolean).join(", ");
const AREA = {left: 60, right: 700, top: 20, bottom: 350}; // of the drawing; its width is that of the screen

function drawing(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

// Rows of one setting and machine that have a cost: others cannot be compared.
function plotted() {
  const groups = new Map();
  for (const i of shown) {
    const row = rows[i];
    if (row.rsum !== null && row.seconds > 0) groups.set(placeOf(row), [...(groups.get(placeOf(row)) ?? []), row]);
  }
  const names = [...groups.keys()].sort((a, b) => groups.get(b).length - groups.get(a).length || b.includes("mean") - a.includes("mean"));
  const name = groups.has(state.setting) ? state.setting : names[0];
  const select = element("setting");
  select.replaceChildren(...names.map(n => node("option", `${n} (${groups.get(n).length})`, {value: n})));
  select.value = name ?? "";
  element("plot-choice").hidden = names.length < 2;
  return {name, points: name ? groups.get(name) : []};
}

// No other row is as good and as cheap; a row that knows the ground truth does not compete.
function frontierOf(points) {
  const best = [];
  for (const row of points.filter(r => !r.truth).sort((a, b) => a.seconds - b.seconds || b.rsum - a.rsum))
    if (!best.length || row.rsum > best.at(-1).rsum) best.push(row);
  return best;
}

function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= rough);
  return Array.from({length: 20}, (_, i) => (Math.ceil(low / step) + i) * step).filter(t => t <= high);
}

function decades(low, high) {
  const from = Math.floor(Math.log10(low)), found = [];
  for (let power = from; 10 ** power <= high; power++) found.push(...[1, 2, 5].map(m => m * 10 ** power));
  return found.filter(t => t >= low && t <= high);
}

// Asked for once: after a change of the table the browser would have to lay it out to know.
function fitPlot() {
  const width = Math.max(320, Math.min(720, element("pareto").clientWidth));
  AREA.right = width - 20;
  element("plot").setAttribute("viewBox", `0 0 ${width} 400`);
}

function drawPlot() {
  const {name, points} = plotted();
  const plot = element("plot"), section = document.querySelector("#pareto figure");
  section.hidden = document.querySelector("#pareto details").hidden = !points.length;
  element("plot-about").textContent = points.length
    ? `${name}. Up and to the left is better; the line joins the rows that no other beats in both. Hollow: several networks at test; squares: knows the ground truth.`
    : "No row of this selection has both rSum and a cost: papers report none.";
  if (!points.length) return;
  const seconds = points.map(r => r.seconds), rsums = points.map(r => r.rsum);
  const [x0, x1] = [Math.min(...seconds) / 1.25, Math.max(...seconds) * 1.25];
  const pad = Math.max(2, (Math.max(...rsums) - Math.min(...rsums)) * .08);
  const [y0, y1] = [Math.min(...rsums) - pad, Math.max(...rsums) + pad];
  const x = s => AREA.left + (AREA.right - AREA.left) * Math.log(s / x0) / Math.log(x1 / x0);
  const y = r => AREA.bottom - (AREA.bottom - AREA.top) * (r - y0) / (y1 - y0);
  const frontier = frontierOf([...points]);
  const parts = [];
  for (const t of ticks(y0, y1, 5)) parts.push(
    drawing("line", {x1: AREA.left, x2: AREA.right, y1: y(t), y2: y(t), class: "grid"}),
    drawing("text", {x: AREA.left - 8, y: y(t) + 4, "text-anchor": "end"}, `${+t.toFixed(1)}`));
  for (const t of decades(x0, x1)) parts.push(
    drawing("line", {x1: x(t), x2: x(t), y1: AREA.top, y2: AREA.bottom, class: "grid"}),
    drawing("text", {x: x(t), y: AREA.bottom + 18, "text-anchor": "middle"}, `${+t.toPrecision(1)}`));
  parts.push(
    drawing("text", {x: (AREA.left + AREA.right) / 2, y: 390, "text-anchor": "middle"}, "seconds a trial (log scale)"),
    drawing("text", {transform: `translate(16 ${(AREA.top + AREA.bottom) / 2}) rotate(-90)`, "text-anchor": "middle"}, "test rSum"),
    drawing("path", {class: "frontier", d: frontier.map((r, i) => `${i ? `H${x(r.seconds)}V` : `M${x(r.seconds)} `}${y(r.rsum)}`).join("")}));
  for (const row of points) parts.push(pointOf(row, x(row.seconds), y(row.rsum), frontier.includes(row)));
  parts.push(...namesOf(frontier, x, y));
  plot.replaceChildren(...parts);
  element("plot-text").textContent = `From the cheapest to the most accurate, of ${points.length} rows: `
    + `${frontier.map(r => `${r.label} ${r.rsum.toFixed(1)} (${r.seconds.toFixed(0)} s)`).join(", ")}.`;
  drawPlotTable(points, frontier);
}

function pointOf(row, x, y, best) {
  const kind = `${best ? "best" : ""} ${row.networks > 1 ? "hollow" : ""}`;
  const mark = row.truth
    ? drawing("rect", {x: x - 5, y: y - 5, width: 10, height: 10, class: kind})
    : drawing("circle", {cx: x, cy: y, r: 5.5, class: kind});
  mark.append(drawing("title", {}, `${row.label}: rSum ${row.rsum.toFixed(1)}, ${row.seconds.toFixed(1)} s`));
  return mark;
}

// Names of the best, where they do not lie on each other.
function namesOf(frontier, x, y) {
  const taken = [];
  return frontier.flatMap(row => {
    const end = x(row.seconds) > AREA.right - 140;
    const at = {x: x(row.seconds) + (end ? -9 : 9), y: y(row.rsum) - 9};
    if (taken.some(t => Math.abs(t.x - at.x) < 90 && Math.abs(t.y - at.y) < 14)) return [];
    taken.push(at);
    return [drawing("text", {...at, class: "name", "text-anchor": end ? "end" : "start"}, row.label)];
  });
}

function drawPlotTable(points, frontier) {
  const line = (name, cells) => {
    const made = node("tr");
    made.append(...cells.map((text, i) => node(name, text, {class: i ? "" : "text", ...(name === "th" && {scope: "col"})})));
    return made;
  };
  const ordered = [...points].sort((a, b) => a.seconds - b.seconds);
  element("plot-table").replaceChildren(
    line("th", ["method", "s/trial", "rSum", "nets", "not beaten in both"]),
    ...ordered.map(r => line("td", [r.label, r.seconds.toFixed(1), r.rsum.toFixed(1), String(r.networks ?? "?"), frontier.includes(r) ? "yes" : ""])));
}

// Start ----------------------------------------------------------------------------------------------

function start() {
  element("sorting").append(node("option", "place, then rSum", {value: ""}));
  drawHead();
  const compare = new Intl.Collator(undefined, {numeric: true}).compare;
  for (const filter of FILTERS) {
    filter.values = [...new Set(rows.map(filter.of))].sort((a, b) => filter.key ? filter.key(a) - filter.key(b) || compare(a, b) : compare(a, b));
    const label = node("label", filter.head);
    filter.select = node("select", "", {id: `filter-${filter.id}`});
    filter.select.addEventListener("change", () => { state.chosen[filter.id] = filter.select.value; changed(); });
    label.append(filter.select);
    label.hidden = filter.values.length < 2; // nothing to choose
    element("filters").append(label);
  }
  for (const [level, {box}] of Object.entries(LEVELS))
    box.addEventListener("change", () => { state.levels[box.checked ? "add" : "delete"](level); changed(); });
  element("text").addEventListener("input", ({target}) => { state.text = target.value; changed(); });
  element("sorting").addEventListener("change", ({target}) => {
    state.sort = target.value;
    state.down = Boolean(COLUMNS.find(c => c.id === state.sort)?.down);
    changed();
  });
  element("turn").addEventListener("click", () => { state.down = !state.down; changed(); });
  element("setting")?.addEventListener("change", ({target}) => { state.setting = target.value; writeAddress(); drawPlot(); });
  element("controls").addEventListener("submit", event => event.preventDefault());
  element("controls").addEventListener("reset", event => { event.preventDefault(); history.replaceState(null, "", "#"); readAddress(); update(); });
  // The address holds the view, so the link to the table must not become part of it.
  document.querySelector(".skip").addEventListener("click", event => { event.preventDefault(); element("table").focus(); element("table").scrollIntoView(); });
  addEventListener("hashchange", () => { readAddress(); update(); });
  if (element("plot")) addEventListener("resize", () => { fitPlot(); drawPlot(); });
  addEventListener("beforeprint", () => drawRows(true));
  addEventListener("afterprint", () => drawRows());
  element("fold").open = matchMedia("(min-width: 40rem)").matches;
  readAddress();
  if (element("plot")) fitPlot();
  update();
}
start();
