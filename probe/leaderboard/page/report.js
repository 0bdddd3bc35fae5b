"use strict";
// What the page does: sort and filter the tables, draw charts of the section that is shown, open records.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const boards = [...document.querySelectorAll(".board")];
const MEAN = "the mean";

// --- small things -----------------------------------------------------------------------------------------------

function make(name, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "line", "rect", "circle", "text", "path", "title"].includes(name);
  const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const percent = (value) => (value === undefined || value === null ? "" : (100 * value).toFixed(2));
const number = (value) => (value === undefined || value === null ? "" : String(Number(Number(value).toPrecision(3))));
const nameOf = (record) => `${record.dataset} / ${record.model} / ${record.mode} / ${record.protocol}`;

function contains(text, wanted) {
  return wanted.toLowerCase().split(/\s+/).every((word) => text.toLowerCase().includes(word));
}

// --- tables: sort, filter, open ---------------------------------------------------------------------------------

function prepare(board) {
  for (const [column, header] of [...board.querySelectorAll("thead th")].entries()) {
    const button = make("button", { type: "button" }, header.textContent);
    button.addEventListener("click", () => sortBy(board, column));
    header.replaceChildren(button);
  }
  for (const span of board.querySelectorAll("span[data-record]")) {
    const record = data.records[span.dataset.record];
    const state = record.status === "ok" ? "" : `, ${record.status}`;
    const label = `${record.model} on ${record.dataset}: ${span.textContent}${state}. Open the record`;
    const button = make("button", { type: "button", "data-record": span.dataset.record, "aria-label": label }, ...span.childNodes);
    span.replaceWith(button);
  }
}

function sortBy(board, column) {
  const headers = [...board.querySelectorAll("thead th")];
  const isText = column === 0;
  const first = isText || headers[column].textContent === "rank" ? "ascending" : "descending";
  const other = first === "ascending" ? "descending" : "ascending";
  const order = headers[column].getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const body = board.querySelector("tbody");
  const keyed = [...body.rows].map((row) => {
    const cell = row.cells[column];
    const value = isText ? cell.textContent : cell.dataset.value ? Number(cell.dataset.value) : null;
    return { row, value };
  });
  keyed.sort((a, b) => {
    if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // what is missing goes last
    return sign * (isText ? a.value.localeCompare(b.value, "en", { numeric: true }) : a.value - b.value);
  });
  body.append(...keyed.map((one) => one.row));
  headers.forEach((header, i) => (i === column ? header.setAttribute("aria-sort", order) : header.removeAttribute("aria-sort")));
  byId("found").textContent = `sorted by ${headers[column].textContent}, ${order}`;
}

function filter() {
  const board = boards[byId("section").value];
  let shown = 0;
  for (const row of board.querySelectorAll("tbody tr")) {
    row.hidden = !contains(row.dataset.model, byId("models").value);
    shown += !row.hidden;
  }
  let columns = 0;
  for (const [i, header] of [...board.querySelectorAll("thead th")].entries()) {
    if (!("dataset" in header.dataset)) continue;
    const isHidden = !contains(`${header.dataset.dataset} ${data.titles[header.dataset.dataset] || ""}`, byId("datasets").value);
    header.hidden = isHidden;
    for (const row of board.querySelectorAll("tbody tr")) row.cells[i].hidden = isHidden;
    columns += !isHidden;
  }
  byId("found").textContent = `${shown} models, ${columns} datasets`;
  drawSection();
}

function showSection() {
  boards.forEach((board, i) => (board.hidden = i !== Number(byId("section").value)));
  const section = data.sections[byId("section").value];
  const before = byId("chosen").value;
  const names = section.common.length > 1 ? [MEAN, ...section.datasets] : section.datasets;
  byId("chosen").replaceChildren(...names.map((name) => make("option", {}, name)));
  byId("chosen").value = names.includes(before) ? before : names[0];
  filter();
}

function openRecord(index) {
  const record = data.records[index];
  if (!record) return;
  const environment = data.environments[record.environment] || {};
  const facts = {
    score: record.score === undefined ? record.error : `${percent(record.score)} % (${record.metric})`,
    "95 % interval": record.low === undefined ? "" : `${percent(record.low)} to ${percent(record.high)} %`,
    status: record.status,
    C: record.C === undefined ? "" : number(record.C),
    solver: `${record.solver}${record.iterations === undefined ? "" : `, ${record.iterations} iterations`}`,
    "gradient, of its start": record.gradient === undefined ? "" : number(record.gradient),
    images: record.train === undefined ? "" : `${record.train} to fit, ${record.test} to test`,
    precision: record.precision,
    weights: record.weights || "",
    seconds: Object.entries(record.seconds || {}).map(([stage, seconds]) => `${stage} ${seconds}`).join(", "),
    environment: Object.entries(environment).map(([name, value]) => `${name} ${value}`).join(", "),
    created: record.created,
  };
  byId("record-title").textContent = nameOf(record);
  byId("facts").replaceChildren(
    ...Object.entries(facts).filter(([, value]) => value).flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]),
  );
  byId("command").textContent = `python -m probe reproduce ${record.file}`;
  byId("file").setAttribute("href", data.folder + encodeURI(record.file));
  byId("copy").textContent = "Copy the command";
  history.replaceState(null, "", `#${encodeURI(record.file)}`);
  byId("record").showModal();
}

async function copyCommand() {
  try {
    await navigator.clipboard.writeText(byId("command").textContent);
    byId("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(byId("command")); // where a file may not use the clipboard
    byId("copy").textContent = "Selected; copy it with your keyboard";
  }
}

// --- charts -----------------------------------------------------------------------------------------------------

const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"]; // Okabe and Ito's, about
const DASHES = ["", "6 3", "2 3"];
const style = (i) => ({ stroke: COLOURS[i % COLOURS.length], "stroke-dasharray": DASHES[Math.floor(i / COLOURS.length) % DASHES.length] });

function ticks(low, high, count = 5) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

// Whole decades, and where they are few what lies between them; `low` and `high` are logarithms.
function logTicks(low, high) {
  const steps = high - low > 6 ? [1] : high - low > 1.5 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9];
  const found = [];
  for (let e = Math.floor(low); e <= high; e += high - low > 6 ? 2 : 1) {
    for (const step of steps) {
      const value = Number((step * 10 ** e).toPrecision(2));
      if (Math.log10(value) >= low && Math.log10(value) <= high) found.push(value);
    }
  }
  return found;
}

function extent(values, share = 0.06) {
  const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * share;
  return [low - room, high + room];
}

// An empty plot with axes; `x` and `y` take values to places on it.
function frame(label, xs, ys, { width = 460, height = 300, left = 52, bottom = 40, isLog = false, xName = "", yName = "", isSquare = false } = {}) {
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const of = isLog ? Math.log10 : (value) => value;
  let [x0, x1] = extent(xs.map(of)), [y0, y1] = extent(ys);
  if (isSquare) [x0, x1] = [y0, y1] = [Math.min(x0, y0), Math.max(x1, y1)];
  const x = (value) => left + ((of(value) - x0) / (x1 - x0)) * (width - left - 12);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - 12);
  const marks = (isLog ? logTicks(x0, x1) : ticks(x0, x1)).map((value) => [value, isLog && x1 - x0 > 6 ? value.toExponential(0) : String(value)]);
  for (const [value, text] of marks) {
    svg.append(make("line", { class: "grid", x1: x(value), x2: x(value), y1: 12, y2: height - bottom }));
    svg.append(make("text", { x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, text));
  }
  for (const value of ticks(y0, y1)) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - 12, y1: y(value), y2: y(value) }));
    svg.append(make("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  svg.append(make("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, xName));
  svg.append(make("text", { x: 12, y: height / 2 - 12, "text-anchor": "middle", transform: `rotate(-90 12 ${height / 2 - 12})` }, yName));
  if (isSquare) svg.append(make("line", { class: "diagonal", x1: x(x0), y1: y(x0), x2: x(x1), y2: y(x1) }));
  return { svg, x, y };
}

function point(plot, at, value, attributes, title, record) {
  const dot = make("circle", { cx: plot.x(at), cy: plot.y(value), r: 5, "data-record": record, ...attributes }, make("title", {}, title));
  plot.svg.append(dot);
}

// A chart, and its numbers as a table for those who do not see it; or why there is none.
function put(id, svg, header, rows, empty) {
  const figure = byId(id);
  figure.querySelectorAll(":scope > :not(figcaption)").forEach((node) => node.remove());
  if (!rows.length) return void figure.append(make("p", { class: "note" }, empty));
  const head = make("tr", {}, ...header.map((name) => make("th", { scope: "col" }, name)));
  const lines = rows.map((row) => make("tr", {}, ...row.map((cell, i) => make(i ? "td" : "th", i ? {} : { scope: "row" }, String(cell)))));
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
  figure.append(svg, make("details", {}, make("summary", {}, "The numbers"), make("div", {}, table)));
}

// Models of the section that are shown, with what the chosen dataset, or the mean, has of them.
function chosenLines() {
  const section = data.sections[byId("section").value], name = byId("chosen").value;
  return section.lines
    .filter((line) => contains(line.model, byId("models").value))
    .map((line) => {
      if (name === MEAN) {
        const { model, mean, low, high, gflops } = line;
        return { model, score: mean, low: low ?? undefined, high: high ?? undefined, gflops, record: undefined };
      }
      const index = line.cells[name];
      return index === undefined ? null : { ...data.records[index], record: index };
    })
    .filter((one) => one && one.score !== undefined && one.score !== null);
}

function drawBars(name, lines) {
  const height = 24 * lines.length + 44, left = Math.min(170, 24 + 7 * Math.max(0, ...lines.map((one) => one.model.length)));
  const ends = lines.flatMap((one) => [100 * (one.low ?? one.score), 100 * (one.high ?? one.score)]);
  const high = Math.max(1, ...ends);
  const width = 460, x = (value) => left + (value / high) * (width - left - 56); // from zero, or lengths would lie
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Bars of ${lines.length} models on ${name}` });
  for (const value of ticks(0, high)) {
    svg.append(make("line", { class: "grid", x1: x(value), x2: x(value), y1: 0, y2: height - 28 }));
    svg.append(make("text", { x: x(value), y: height - 12, "text-anchor": "middle" }, String(value)));
  }
  lines.forEach((one, i) => {
    const top = 24 * i + 4, text = one.model.length > 20 ? `${one.model.slice(0, 19)}…` : one.model;
    svg.append(make("text", { x: left - 6, y: top + 13, "text-anchor": "end" }, text));
    const title = make("title", {}, `${one.model}: ${percent(one.score)} %`);
    svg.append(make("rect", { class: "bar", x: left, y: top, width: x(100 * one.score) - left, height: 17, "data-record": one.record }, title));
    if (one.low !== undefined) {
      svg.append(make("line", { class: "whisker", x1: x(100 * one.low), x2: x(100 * one.high), y1: top + 8.5, y2: top + 8.5 }));
    }
    svg.append(make("text", { x: x(100 * (one.high ?? one.score)) + 6, y: top + 13 }, percent(one.score)));
  });
  const rows = lines.map((one) => [one.model, percent(one.score), percent(one.low), percent(one.high)]);
  put("bars", svg, ["model", "score, %", "low, %", "high, %"], rows, "No model has a score here.");
}

function drawCost(name, lines) {
  const known = lines.filter((one) => one.gflops);
  const empty = "No model here has a known cost.";
  if (!known.length) return put("cost", null, [], [], empty);
  const scores = known.flatMap((one) => [100 * (one.low ?? one.score), 100 * (one.high ?? one.score)]);
  const label = `Score on ${name} against GFLOPs, ${known.length} models`;
  const plot = frame(label, known.map((one) => one.gflops), scores, { isLog: true, xName: "GFLOPs an image", yName: "score, %" });
  known.forEach((one, i) => {
    if (one.low !== undefined) {
      const at = plot.x(one.gflops);
      plot.svg.append(make("line", { class: "whisker", x1: at, x2: at, y1: plot.y(100 * one.low), y2: plot.y(100 * one.high) }));
    }
    point(plot, one.gflops, 100 * one.score, { fill: COLOURS[i % COLOURS.length] }, `${one.model}: ${percent(one.score)} %`, one.record);
    const isRight = plot.x(one.gflops) > 320;
    plot.svg.append(make("text", { x: plot.x(one.gflops) + (isRight ? -8 : 8), y: plot.y(100 * one.score) - 6, "text-anchor": isRight ? "end" : "start" }, one.model));
  });
  put("cost", plot.svg, ["model", "GFLOPs", "score, %"], known.map((one) => [one.model, number(one.gflops), percent(one.score)]), empty);
}

function drawSweep(name, lines) {
  const swept = lines.filter((one) => one.sweep && one.sweep.length > 1);
  const empty = name === MEAN ? "Choose a dataset to see its sweeps." : "Nothing was swept here.";
  if (!swept.length) return put("sweep", null, [], [], empty);
  const points = swept.flatMap((one) => one.sweep);
  const height = 300 + 16 * swept.length;
  const label = `Validation score against C on ${name}, ${swept.length} models`;
  const plot = frame(label, points.map((p) => p[0]), points.map((p) => 100 * p[1]), { isLog: true, height, bottom: 44 + 16 * swept.length, yName: "validation score, %" });
  swept.forEach((one, i) => {
    const sorted = [...one.sweep].sort((a, b) => a[0] - b[0]);
    const path = sorted.map(([C, score], k) => `${k ? "L" : "M"}${plot.x(C)} ${plot.y(100 * score)}`).join(" ");
    plot.svg.append(make("path", { d: path, fill: "none", "stroke-width": 2, ...style(i) }));
    for (const [C, score] of sorted) {
      const isChosen = Math.abs(Math.log(C / one.C)) < 1e-9;
      const look = isChosen ? { r: 7, fill: "none", "stroke-width": 3, stroke: style(i).stroke } : { r: 3, fill: style(i).stroke };
      point(plot, C, 100 * score, look, `${one.model}, C = ${number(C)}: ${percent(score)} %${isChosen ? ", chosen" : ""}`, one.record);
    }
    const y = height - 16 * (swept.length - i) + 4;
    plot.svg.append(make("line", { x1: 52, x2: 82, y1: y - 4, y2: y - 4, "stroke-width": 2, ...style(i) }));
    plot.svg.append(make("text", { x: 90, y }, one.model));
  });
  const rows = swept.flatMap((one) => one.sweep.map(([C, score]) => [one.model, C.toExponential(2), percent(score), Math.abs(Math.log(C / one.C)) < 1e-9 ? "chosen" : ""]));
  put("sweep", plot.svg, ["model", "C", "validation, %", ""], rows, empty);
}

function drawPairs(id, found, xName, yName, empty) {
  if (!found.length) return put(id, null, [], [], empty);
  const plot = frame(`${yName} against ${xName}, ${found.length} cells`, found.map((f) => f.x), found.map((f) => f.y), { isSquare: true, xName, yName });
  for (const one of found) point(plot, one.x, one.y, { fill: COLOURS[0], "fill-opacity": 0.7 }, one.title, one.record);
  put(id, plot.svg, ["cell", xName, yName, "difference", ...(found[0].more ? Object.keys(found[0].more) : [])],
    found.map((f) => [f.name, f.x.toFixed(2), f.y.toFixed(2), (f.y - f.x).toFixed(2), ...Object.values(f.more || {})]), empty);
}

function drawSection() {
  const name = byId("chosen").value, lines = chosenLines();
  document.querySelectorAll("figcaption .of").forEach((span) => (span.textContent = name));
  drawBars(name, lines);
  drawCost(name, lines);
  drawSweep(name, lines);
}

function drawAll() {
  const pairs = data.pairs.map((pair) => {
    const jit = data.records[pair.jit], x = 100 * data.records[pair.eager].score, y = 100 * jit.score;
    const more = { flips: pair.flipped ?? "", p: number(pair.p), "largest feature difference": pair.largest === null ? "" : pair.largest.toExponential(1) };
    return { x, y, more, record: pair.jit, name: nameOf(jit), title: `${nameOf(jit)}: ${(y - x).toFixed(2)} points` };
  });
  drawPairs("jit", pairs, "eager, %", "JIT, %", "No cell has a score in both modes.");
  const published = data.published.map(([index, theirs]) => {
    const record = data.records[index], x = 100 * theirs, y = 100 * record.score;
    return { x, y, record: index, name: nameOf(record), title: `${nameOf(record)}: ${(y - x).toFixed(2)} points` };
  });
  drawPairs("published", published, "published, %", "here, %", "No cell here is of a dataset and model of the paper.");
}

// --- start ------------------------------------------------------------------------------------------------------

if (boards.length) {
  boards.forEach(prepare);
  byId("controls").hidden = byId("charts").hidden = false;
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("section").addEventListener("change", showSection);
  byId("models").addEventListener("input", filter);
  byId("datasets").addEventListener("input", filter);
  byId("chosen").addEventListener("change", drawSection);
  byId("copy").addEventListener("click", copyCommand);
  byId("record").addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-record]");
    if (opener) openRecord(opener.dataset.record);
  });
  showSection();
  drawAll();
  const linked = data.records.findIndex((record) => `#${encodeURI(record.file)}` === location.hash);
  if (linked >= 0) {
    byId("section").value = data.sections.findIndex((one) => one.lines.some((line) => Object.values(line.cells).includes(linked)));
    showSection();
    openRecord(linked);
  }
}
