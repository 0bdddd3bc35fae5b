"use strict";
// Charts as SVG. Each has its numbers in a table below it. A chart with nothing to compare is hidden.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function make(name, attributes = {}, ...children) {
  const isSvg = ["svg", "line", "rect", "circle", "text", "path", "title"].includes(name);
  const node = isSvg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const percent = (value) => (value === undefined || value === null ? "" : (100 * value).toFixed(2));
const number = (value) => (value === undefined || value === null ? "" : String(Number(Number(value).toPrecision(3))));
const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;
const shorten = (text, length = 20) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
const colour = (model) => `c${model % 8}`; // belongs to the model, whatever is filtered
const dashes = (model) => ["", "6 3", "2 3"][Math.floor(model / 8) % 3];
const isChosen = (one, C) => Math.abs(Math.log(C / one.C)) < 1e-6;
const choice = (one, C) => (isChosen(one, C) ? "chosen" : (one.ended_early ?? []).includes(C) ? "ended early" : "");
// The inner width of a figure; page.css makes columns of 24rem or more.
function chartWidth() {
  const width = byId("charts").clientWidth, columns = Math.max(1, Math.floor((width + 16) / 400));
  return Math.max(240, (width - 16 * (columns - 1)) / columns - 34);
}

function ticks(low, high, most = 5) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let value = Math.ceil(low / step - 1e-9) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

// Whole decades, and what lies between them if they are few; `low` and `high` are logarithms.
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

// An empty plot with axes; `x` and `y` take values to places on it. `names` is a Map of values of x to their texts.
function frame(label, xs, ys, { bottom = 40, isLog = false, xName = "", yName = "", isSquare = false, names = null, width = chartWidth() }) {
  const height = 260 + bottom, left = 52;
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const of = isLog ? Math.log10 : (value) => value;
  let [x0, x1] = extent(xs.map(of)), [y0, y1] = extent(ys);
  if (isSquare) [x0, x1] = [y0, y1] = [Math.min(x0, y0), Math.max(x1, y1)];
  const x = (value) => left + ((of(value) - x0) / (x1 - x0)) * (width - left - 12);
  const y = (value) => height - bottom - ((value - y0) / (y1 - y0)) * (height - bottom - 12);
  for (const value of names ? names.keys() : isLog ? logTicks(x0, x1) : ticks(x0, x1)) {
    const text = names ? names.get(value) : isLog && x1 - x0 > 6 ? value.toExponential(0) : String(value);
    svg.append(make("line", { class: "grid", x1: x(value), x2: x(value), y1: 12, y2: height - bottom }));
    svg.append(make("text", { class: "soft", x: x(value), y: height - bottom + 16, "text-anchor": "middle" }, text));
  }
  for (const value of ticks(y0, y1)) {
    svg.append(make("line", { class: "grid", x1: left, x2: width - 12, y1: y(value), y2: y(value) }));
    svg.append(make("text", { class: "soft", x: left - 6, y: y(value) + 4, "text-anchor": "end" }, String(value)));
  }
  const middle = (height - bottom) / 2;
  svg.append(make("text", { x: (left + width) / 2, y: height - bottom + 33, "text-anchor": "middle" }, xName));
  svg.append(make("text", { x: 12, y: middle, "text-anchor": "middle", transform: `rotate(-90 12 ${middle})` }, yName));
  if (isSquare) svg.append(make("line", { class: "diagonal", x1: x(x0), y1: y(x0), x2: x(x1), y2: y(x1) }));
  const dot = (at, value, model, title, record, attributes = {}) =>
    svg.append(make("circle", { cx: x(at), cy: y(value), r: 5, class: colour(model), "data-record": record, ...attributes }, make("title", {}, title)));
  return { svg, x, y, dot, width, height };
}

// Put a chart into its figure with caption and numbers: rows of texts, whose first opens the record if there is one.
// `svg` is "" for numbers without a chart, which are then open.
function put(id, title, text, svg, header, rows) {
  const head = make("tr", {}, ...header.map((name) => make("th", { scope: "col" }, name)));
  const lines = rows.map(({ record, cells }) => {
    const [first, ...rest] = cells;
    const opener = record === undefined ? first : make("button", { type: "button", "data-record": record }, first);
    return make("tr", {}, make("th", { scope: "row" }, opener), ...rest.map((cell) => make("td", {}, String(cell))));
  });
  const table = make("table", {}, make("thead", {}, head), make("tbody", {}, ...lines));
  const region = make("div", { role: "region", tabindex: 0, "aria-label": `Numbers: ${title}` }, table);
  byId(id).replaceChildren(
    make("figcaption", {}, make("strong", {}, title), text), svg, make("details", { open: svg ? null : "" }, make("summary", {}, "The numbers"), region));
  byId(id).hidden = false;
}

// The items of a chart have label, model, record, and score with low and high, or what else the chart is about.
// Items with `images` have a column for their number.
function drawBars(of, items, { least = 2, id = "bars", width = chartWidth() } = {}) {
  if (items.length < least) return;
  const lows = items.map((one) => 100 * (one.low ?? one.score)), highs = items.map((one) => 100 * (one.high ?? one.score));
  const high = Math.max(1, ...highs), low = Math.min(...lows), room = (high - low) / 4;
  // The bars start where differences can be seen.
  const start = items.length < 2 || low - room < high / 4 ? 0 : Math.max(...ticks(0, low - room, 20));
  const height = 28 * items.length + 32;
  const labels = items.map((one) => shorten(one.label));
  const left = Math.min(160, 16 + 6.6 * Math.max(...labels.map((label) => label.length)));
  const x = (value) => left + ((value - start) / (high - start)) * (width - left - 52);
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${count(items.length, "bar")}: scores ${of}` });
  for (const value of ticks(start, high, width < 400 ? 3 : 5)) {
    svg.append(make("line", { class: "grid", x1: x(value), x2: x(value), y1: 0, y2: height - 24 }));
    svg.append(make("text", { class: "soft", x: x(value), y: height - 8, "text-anchor": "middle" }, String(value)));
  }
  items.forEach((one, i) => {
    const top = 28 * i + 4, value = 100 * one.score;
    svg.append(make("text", { x: left - 8, y: top + 14, "text-anchor": "end" }, labels[i]));
    const title = make("title", {}, `${one.label}: ${percent(one.score)} %`);
    svg.append(make("rect", { class: colour(one.model), x: left, y: top, width: Math.max(1, x(value) - left), height: 20, rx: 3, "data-record": one.record }, title));
    if (one.low !== undefined) svg.append(make("line", { class: "whisker", x1: x(lows[i]), x2: x(highs[i]), y1: top + 10, y2: top + 10 }));
    svg.append(make("text", { x: x(highs[i]) + 6, y: top + 14 }, percent(one.score)));
  });
  const hasImages = items.some((one) => one.images !== undefined), hasIntervals = items.some((one) => one.low !== undefined);
  const rows = items.map((one) => ({ record: one.record, cells: [one.label, ...(hasImages ? [one.images] : []), percent(one.score), percent(one.low), percent(one.high)] }));
  const text = `In percent${hasIntervals ? ", with 95 % confidence intervals" : ""}. ${start ? `The bars start at ${start} %, not at zero.` : "The bars start at zero."}`;
  put(id, `Scores ${of}`, text, svg, ["name", ...(hasImages ? ["images"] : []), "score, %", "lower bound, %", "upper bound, %"], rows);
}

function drawCost(of, items) {
  const known = items.filter((one) => one.gflops);
  if (new Set(known.map((one) => one.gflops)).size < 2) return;
  const ends = known.flatMap((one) => [100 * (one.low ?? one.score), 100 * (one.high ?? one.score)]);
  const label = `Scores ${of} against cost, ${count(known.length, "model")}`;
  const plot = frame(label, known.map((one) => one.gflops), ends, { isLog: true, xName: "GFLOPs for an image", yName: "score, %" });
  const placed = [];
  for (const one of known) {
    const x = plot.x(one.gflops), isRight = x > plot.width - 130, side = isRight ? -9 : 9;
    let y = plot.y(100 * one.score) - 6;
    while (placed.some((other) => Math.abs(other.x - x) < 110 && Math.abs(other.y - y) < 13)) y += 3;
    placed.push({ x, y });
    if (one.low !== undefined) plot.svg.append(make("line", { class: "whisker", x1: x, x2: x, y1: plot.y(100 * one.low), y2: plot.y(100 * one.high) }));
    plot.dot(one.gflops, 100 * one.score, one.model, `${one.label}: ${percent(one.score)} %`, one.record);
    plot.svg.append(make("text", { x: x + side, y, "text-anchor": isRight ? "end" : "start" }, shorten(one.label)));
  }
  const rows = known.map((one) => ({ record: one.record, cells: [one.label, number(one.gflops), percent(one.score)] }));
  put("cost", `Scores ${of} against cost`, "Billions of operations of the image tower for one image.", plot.svg, ["model", "GFLOPs", "score, %"], rows);
}

function drawSweep(of, items) {
  const swept = items.filter((one) => one.sweep && one.sweep.length > 1);
  if (!swept.length) return;
  const points = swept.flatMap((one) => one.sweep), hasNames = swept.length <= 12, bottom = 52 + 16 * (hasNames ? swept.length : 0);
  const label = `Validation score against C ${of}, ${count(swept.length, "curve")}`;
  const plot = frame(label, points.map((p) => p[0]), points.map((p) => 100 * p[1]), { isLog: true, bottom, xName: "C", yName: "validation score, %" });
  swept.forEach((one, i) => {
    const sorted = [...one.sweep].sort((a, b) => a[0] - b[0]);
    const dash = one.dash ?? dashes(one.model);
    const path = sorted.map(([C, score], k) => `${k ? "L" : "M"}${plot.x(C)} ${plot.y(100 * score)}`).join(" ");
    plot.svg.append(make("path", { d: path, class: colour(one.model), "stroke-dasharray": dash }));
    for (const [C, score] of sorted) {
      const chosen = isChosen(one, C), look = chosen ? { r: 7, class: `ring ${colour(one.model)}` } : { r: 3 };
      plot.dot(C, 100 * score, one.model, `${one.label}, C = ${number(C)}: ${percent(score)} %${choice(one, C) && ", "}${choice(one, C)}`, one.record, look);
    }
    if (!hasNames) return;
    const y = plot.height - 16 * (swept.length - i) + 8;
    plot.svg.append(make("path", { d: `M52 ${y - 4}H82`, class: colour(one.model), "stroke-dasharray": dash }));
    plot.svg.append(make("text", { x: 90, y }, shorten(one.label, 50)));
  });
  const rows = swept.flatMap((one) =>
    one.sweep.map(([C, score]) => ({ record: one.record, cells: [one.label, number(C), percent(score), choice(one, C)] })));
  const text = `Score on the validation split for each strength of regularization. A ring marks the chosen C.${hasNames ? "" : " The numbers name the curves."}`;
  put("sweep", `Sweep ${of}`, text, plot.svg, ["name", "C", "validation score, %", "choice"], rows);
}

// Mean scores against the number of training images of each class; zero-shot is the level at 0.
function drawShots(chart, isShown) {
  const curves = chart ? chart.curves.filter((one) => isShown(one.model)) : [];
  if (!curves.length) return;
  const scores = curves.flatMap((one) => [...one.scores, one.zero_shot ?? one.scores[0]]).map((score) => 100 * score);
  const hasLevels = curves.some((one) => one.zero_shot !== undefined);
  // Each number of shots is twice the one before it, so their distances are equal.
  const names = new Map([...(hasLevels ? [[0, "0"]] : []), ...chart.shots.map((shots, i) => [i + 1, String(shots)])]);
  const hasNames = curves.length <= 12, bottom = 52 + 16 * (hasNames ? curves.length : 0);
  const title = "Few-shot probes and zero-shot", of = chart.datasets.length > 1 ? `averaged over ${chart.datasets.join(", ")}` : `on ${chart.datasets[0]}`;
  const plot = frame(`${title}, ${count(curves.length, "curve")}`, [...names.keys()], scores, { bottom, names, xName: "training images of each class", yName: "score, %" });
  curves.forEach((one, i) => {
    const { label } = data.models[one.model], look = { class: colour(one.model), "stroke-dasharray": dashes(one.model) };
    const path = one.scores.map((score, k) => `${k ? "L" : "M"}${plot.x(k + 1)} ${plot.y(100 * score)}`).join(" ");
    plot.svg.append(make("path", { d: path, ...look }));
    one.scores.forEach((score, k) => plot.dot(k + 1, 100 * score, one.model, `${label}, ${count(chart.shots[k], "image")} of each class: ${percent(score)} %`, undefined, { r: 3 }));
    if (one.zero_shot !== undefined) {
      const y = plot.y(100 * one.zero_shot);
      plot.svg.append(make("line", { class: `level ${colour(one.model)}`, x1: plot.x(0), x2: plot.width - 12, y1: y, y2: y }));
      plot.dot(0, 100 * one.zero_shot, one.model, `${label}, zero-shot: ${percent(one.zero_shot)} %`, undefined, { r: 6, class: `ring ${colour(one.model)}` });
    }
    if (!hasNames) return;
    const y = plot.height - 16 * (curves.length - i) + 8;
    plot.svg.append(make("path", { d: `M52 ${y - 4}H82`, ...look }));
    plot.svg.append(make("text", { x: 90, y }, shorten(label, 50)));
  });
  const header = ["model", ...(hasLevels ? ["zero-shot, %"] : []), ...chart.shots.map((shots) => `${count(shots, "image")}, %`)];
  const rows = curves.map((one) => ({ cells: [data.models[one.model].label, ...(hasLevels ? [percent(one.zero_shot)] : []), ...one.scores.map(percent)] }));
  const text = `Scores ${of}: ${chart.title}.${hasLevels ? " A ring and its dashed line mark zero-shot." : ""}`;
  put("shots", title, text, plot.svg, header, rows);
}

// Points with `x` and `y` in percent, label, model, record, and `more` columns of the table.
function drawPairs(id, title, text, points, xName, yName) {
  if (!points.length) return;
  const plot = frame(`${title}, ${count(points.length, "run")}`, points.map((p) => p.x), points.map((p) => p.y), { isSquare: true, xName, yName });
  for (const p of points) plot.dot(p.x, p.y, p.model, `${p.label}: ${(p.y - p.x).toFixed(2)} points`, p.record);
  const header = ["run", xName, yName, "difference", ...Object.keys(points[0].more)];
  const rows = points.map((p) => ({ record: p.record, cells: [p.label, p.x.toFixed(2), p.y.toFixed(2), (p.y - p.x).toFixed(2), ...Object.values(p.more)] }));
  put(id, title, text, plot.svg, header, rows);
}

// Share of hits against the mean probability of each bin; the area of a dot grows with the number of answers.
function drawReliability(record, width) {
  const { before, after, temperature, reasons = [] } = record.calibration;
  const states = [["before", before], ...(after ? [["after", after]] : [])];
  const measures = states.map(([name, one]) => {
    const around = one.low === undefined ? "" : ` (${percent(one.low)} to ${percent(one.high)})`;
    const loss = one.nll === undefined ? "" : `, NLL ${one.nll.toFixed(4)}`;
    return `${name} temperature scaling: ECE ${percent(one.ece)} %${around}, Brier score ${one.brier.toFixed(4)}${loss}`;
  });
  const sentences = [...measures, ...(temperature === undefined ? [] : [`temperature ${number(temperature)}`]), ...reasons];
  const text = sentences.map((one) => `${one[0].toUpperCase()}${one.slice(1)}.`).join(" ");
  const drawn = states.filter(([, one]) => one.bins);
  const rows = drawn.flatMap(([name, one]) => one.bins.map(([answers, probability, hits]) => ({ cells: [name, answers, percent(probability), percent(hits)] })));
  const header = ["temperature scaling", "answers", "probability, %", "hits, %"];
  if (!rows.length) return put("reliability", "Calibration", text, "", header.slice(0, 1), measures.map((one) => ({ cells: [one] })));
  const bottom = 52 + 16 * drawn.length;
  const plot = frame(`Reliability diagram, ${count(drawn.length, "curve")}`, [0, 100], [0, 100], { isSquare: true, bottom, width, xName: "mean probability of a bin, %", yName: "hits, %" });
  drawn.forEach(([name, one], i) => {
    const total = one.bins.reduce((sum, [answers]) => sum + answers, 0), look = { class: colour(i), "stroke-dasharray": i ? "6 3" : "" };
    plot.svg.append(make("path", { d: one.bins.map(([, x, y], k) => `${k ? "L" : "M"}${plot.x(100 * x)} ${plot.y(100 * y)}`).join(" "), ...look }));
    for (const [answers, x, y] of one.bins) {
      plot.dot(100 * x, 100 * y, i, `${name}: ${count(answers, "answer")}, probability ${percent(x)} %, hits ${percent(y)} %`, undefined, { r: 2 + 6 * Math.sqrt(answers / total) });
    }
    const y = plot.height - 16 * (drawn.length - i) + 8;
    plot.svg.append(make("path", { d: `M52 ${y - 4}H82`, ...look }), make("text", { x: 90, y }, `${name} temperature scaling`));
  });
  put("reliability", "Calibration", `${text} On the line, probabilities agree with the share of hits.`, plot.svg, header, rows);
}
